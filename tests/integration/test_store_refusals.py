"""Who may do what in the embedded store, asked over HTTP; and that nothing of a refused query or a secret shows anywhere."""

import base64
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from schemas.links import store_link
from tests.support.home import wait_until
from tests.support.store import Store, decision, frame_of, running


def code(store: Store, sql: str, user: str = "reader") -> int:
    with pytest.raises(DatabaseError) as fault:
        store.client(user).command(sql)
    assert fault.value.code is not None
    return fault.value.code


def test_no_user_is_401_and_a_wrong_password_403(store: Store) -> None:
    status, headers, body = store.curl("-d", "SELECT 1", user="")
    assert (status, headers["x-clickhouse-exception-code"]) == (401, "194")
    assert headers["www-authenticate"].startswith("Basic ")
    assert body.startswith(b"Code: 194. DB::Exception: ")
    key = store.password("reader")
    for who in ("reader:wrong", "writer:wrong", f"writer:{key}", f"nobody:{key}", "reader:", f":{key}", f"reader:{key} "):
        status, headers, _ = store.curl("-u", who, "-d", "SELECT 1", user="")
        assert (status, headers["x-clickhouse-exception-code"]) == (403, "516"), who
    not_utf8 = base64.b64encode(b"\xff:\xff").decode()
    for header in ("Authorization: Basic !!!", "X-ClickHouse-User: reader", f"Authorization: Basic {not_utf8}"):
        assert store.curl("-H", header, "-d", "SELECT 1", user="")[0] == 403, header
    assert store.curl("-H", "Authorization: Bearer x", "-d", "SELECT 1", user="")[0] == 401


def test_the_user_may_come_in_a_header_or_in_the_query(store: Store) -> None:
    key = store.password("reader")
    headers = ["-H", "X-ClickHouse-User: reader", "-H", f"X-ClickHouse-Key: {key}"]
    assert store.curl(*headers, "-d", "SELECT 1", user="")[2] == b"1\n"
    assert store.curl(path=f"/?user=reader&password={key}&query=SELECT%202", user="")[2] == b"2\n"


def test_ping_needs_no_user(store: Store) -> None:
    assert store.curl(path="/ping", user="")[::2] == (200, b"Ok.\n")


@pytest.mark.parametrize("sql", [
    "INSERT INTO fence VALUES (1, 1, 'x', now())", "CREATE TABLE x (a UInt8) ENGINE = Memory", "DROP TABLE records",
    "ALTER TABLE records DELETE WHERE 1", "TRUNCATE TABLE records", "OPTIMIZE TABLE records", "SET readonly = 0",
    "SELECT 1 SETTINGS readonly = 0",
])  # fmt: skip
def test_the_reader_only_reads(store: Store, sql: str) -> None:
    store.insert(frame_of([decision(1)], frame_no=1))
    assert code(store, sql) == 164
    assert store.rows("SELECT count() FROM records") == [(2,)]


@pytest.mark.parametrize("user", ["reader", "writer"])
def test_no_user_reads_or_writes_files_and_addresses(store: Store, user: str, tmp_path: Path) -> None:
    secret, out = tmp_path / "secret", tmp_path / "out"
    secret.write_text("do not tell\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        for sql in (
            f"SELECT * FROM file('{secret}', 'LineAsString')", f"SELECT file('{secret}')", f"SELECT 1 INTO OUTFILE '{out}'",
            f"SELECT * FROM url('{url}', 'LineAsString')", f"SELECT * FROM s3('{url}a/b', 'LineAsString')",
            f"SELECT * FROM `file`('{secret}', 'LineAsString')", f"SELECT * FROM remote('{url[7:-1]}', system.one)",
            "SELECT * FROM executable('x', 'TSV', 'a String')", f"SELECT 1 SETTINGS format_template_resultset = '{secret}'",
            f"SELECT * APPLY(file) FROM (SELECT '{secret}')", f"SELECT arrayMap(file, ['{secret}'])",
            f"SELECT 1 SETTINGS filter = 'file(\\'{secret}\\') != \\'\\''",
        ):  # fmt: skip
            assert code(store, sql, user) == 497, sql
        for sql in (f"SELECT * FROM `{secret}`", f"SELECT * FROM default.`{secret}`", f"SELECT * FROM '{secret}'"):
            assert code(store, sql, user) in (60, 62, 81), sql
        with pytest.raises(TimeoutError):
            server.accept()
    assert not out.exists()


def test_a_name_in_a_parameter_is_no_file_and_no_function(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1\n")
    path = str(tmp_path / "x.csv")
    for sql, value in (("SELECT * FROM {t:Identifier}", path), (f"SELECT arrayMap({{t:Identifier}}, ['{path}'])", "file")):
        with pytest.raises(DatabaseError) as fault:
            store.rows(sql, parameters={"t": value})
        assert fault.value.code == 497


@pytest.mark.parametrize("sql", [
    "INSERT INTO fence FROM INFILE '/etc/hostname' FORMAT CSV", "INSERT INTO fence SELECT 1, 1, file('/etc/hostname'), now()",
    "INSERT INTO fence VALUES (1, 1, file('/etc/hostname'), now())", "INSERT INTO FUNCTION file('/tmp/x', 'CSV') SELECT 1",
    "CREATE TABLE x (a String) ENGINE = File('LineAsString', '/etc/hostname')", "CREATE VIEW v AS SELECT * FROM url('http://x')",
])  # fmt: skip
def test_the_writer_stays_inside_the_store(store: Store, sql: str) -> None:
    assert code(store, sql, "writer") == 497


def test_rows_that_are_too_many_to_read_as_sql_are_data_and_no_expressions(store: Store) -> None:
    store.run("CREATE TABLE IF NOT EXISTS texts (a String) ENGINE = MergeTree ORDER BY a")
    store.run("TRUNCATE TABLE texts")
    row, count = b"('" + b"x" * 1000 + b"'),", 2000
    body = b"INSERT INTO texts VALUES " + row * count
    assert store.curl("-H", "Expect:", user="writer", data=body)[0] == 200
    assert store.rows("SELECT count(), sum(length(a)) FROM texts") == [(2000, 2_000_000)]
    status, _, text = store.curl("-H", "Expect:", user="writer", data=body + b"(file('/etc/hostname'))")
    assert (status, store.rows("SELECT count() FROM texts")) == (400, [(2000,)]), text
    path = "/?input_format_values_interpret_expressions=1"
    assert store.curl("-H", "Expect:", path=path, user="writer", data=body)[0] == 403
    store.run("DROP TABLE texts")


def test_settings_in_the_address_are_guarded_as_those_in_the_text(store: Store) -> None:
    for name in ("format_schema", "filter", "select", "url_base", "dialect", "additional_table_filters", "allow_ddl", "disk"):
        status, headers, _ = store.curl(path=f"/?{name}=x", data=b"SELECT 1")
        assert (status, headers["x-clickhouse-exception-code"]) == (403, "497"), name
    for name in ("max_execution_time", "max_memory_usage"):
        assert store.curl(path=f"/?{name}=0", data=b"SELECT 1")[0] == 400, name
        assert store.curl(path=f"/?{name}=100000000000", data=b"SELECT 1")[0] == 400, name


def test_get_reads_and_does_not_write(store: Store) -> None:
    path = "/?query=TRUNCATE%20TABLE%20records"
    assert store.curl(path=path, user="writer")[1]["x-clickhouse-exception-code"] == "164"
    assert store.curl(path="/?readonly=1", user="writer", data=b"TRUNCATE TABLE records")[0] == 403
    assert store.curl("-X", "DELETE", path="/", user="writer")[0] == 405


def test_a_query_that_is_too_long_or_packed_wrong_is_refused_by_name(store: Store) -> None:
    status, _, body = store.curl("-H", "Expect:", data=b"SELECT '" + b"x" * (1 << 20) + b"'")
    assert (status, b"1048576" in body) == (413, True)
    for encoding, status in (("zstd", 400), ("gzip", 400), ("lz4", 400), ("compress", 400)):
        assert store.curl("-H", f"Content-Encoding: {encoding}", data=b"SELECT 1 not packed")[0] == status, encoding
    assert store.curl(path="/?decompress=1", data=b"SELECT 1")[0] == 400
    assert store.curl("-F", "t=@/etc/hostname", path="/?query=SELECT%201")[0] == 400


def test_no_secret_shows_in_logs_metrics_errors_or_titles(tmp_path: Path) -> None:
    with running(tmp_path / "home") as store:
        secrets = [store.password("writer"), store.password("reader"), "planted-secret"]
        seen = b""
        for who in ("writer:planted-secret", "planted-secret:x"):
            seen += store.curl("-u", who, "-d", "SELECT 1", user="")[2]
        seen += store.curl(path="/?user=reader&password=planted-secret&query=SELECT", user="")[2]
        seen += store.curl("-H", "Authorization: Basic planted-secret", "-d", "SELECT 1", user="")[2]
        for user in ("reader", "writer"):
            seen += store.curl("-d", "SELECT nonsense", user=user)[2]
            seen += str(store.rows("SELECT * FROM system.processes", user=user)).encode()
            seen += str(store.rows("SELECT name, value FROM system.settings", user=user)).encode()
        metrics = store.said()["metrics"]
        seen += subprocess.run(["curl", "-sS", f"http://{metrics}/metrics"], capture_output=True, check=True).stdout
        seen += Path(f"/proc/{store.pid}/cmdline").read_bytes() + Path(f"/proc/{store.pid}/environ").read_bytes()
        seen += (store.home.log / "store.log").read_bytes() + store.home.run_file("store").read_bytes()
        assert b"wardline_store_requests_total" in seen
        for secret in secrets:
            assert secret.encode() not in seen
        for user in ("writer", "reader"):
            assert store.home.password(user).stat().st_mode & 0o777 == 0o600
            link = store_link(store.home, store.config, user)
            assert store.password(user) not in repr(link)


def test_a_password_file_that_others_can_read_stops_the_start(tmp_path: Path) -> None:
    with running(tmp_path / "home") as store:
        store.wardline.stop("store")
        store.home.password("reader").chmod(0o644)
        done = store.wardline.run("store", check=False, timeout=60)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == f"wardline: {store.home.password('reader')}: mode is 0644, must be 0600"
        assert "Traceback" not in done.stderr


def test_a_second_store_says_who_holds_the_first(tmp_path: Path) -> None:
    with running(tmp_path / "home") as store:
        done = store.wardline.run("store", check=False, timeout=60)
        assert done.returncode == 2
        assert f"the store is held by process {store.pid}" in done.stderr
        assert store.rows("SELECT 1") == [(1,)]


def test_a_stop_lets_the_running_insert_finish(tmp_path: Path) -> None:
    with running(tmp_path / "home") as store:
        store.run("CREATE TABLE slow (a UInt64) ENGINE = MergeTree ORDER BY a")
        sql = "INSERT INTO slow SELECT number + sleepEachRow(0.02) FROM numbers(50) SETTINGS max_block_size = 1"
        command = ["curl", "-sS", "-u", f"writer:{store.password('writer')}", "-d", sql, store.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
            query = "SELECT count() FROM system.processes WHERE query_kind = 'Insert' AND query LIKE '%sleepEachRow(0.02)%'"
            wait_until(lambda: store.rows(query, user="writer") == [(1,)], 10, "the insert runs")
            assert store.wardline.stop("store") == 0
            assert curl.communicate(timeout=20)[0] == b""
            assert curl.returncode == 0
        assert not store.home.run_file("store").exists()
        store.forget()
        store.start()
        assert store.rows("SELECT count() FROM slow") == [(50,)]


def test_a_reader_that_leaves_ends_its_query_and_does_not_hold_the_others(store: Store) -> None:
    sql = "SELECT count() FROM numbers(100000000000) WHERE sipHash64(number) = 1"
    command = ["curl", "-sS", "-u", f"reader:{store.password('reader')}", "-d", sql, store.url]
    count = f"SELECT count() FROM system.processes WHERE query = '{sql.replace(chr(39), chr(92) + chr(39))}'"
    slow = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(5)]
    try:
        wait_until(lambda: store.rows(count, user="writer")[0][0] == 3, 20, "three queries run, the others wait")
        started = time.monotonic()
        store.insert(frame_of([decision(1)], frame_no=1))
        assert store.rows("SELECT count() FROM records", user="writer") == [(2,)]
        assert time.monotonic() - started < 10
    finally:
        for process in slow:
            process.kill()
            process.wait()
    wait_until(lambda: store.rows(count, user="writer") == [(0,)], 20, "no query is left")
    assert store.rows("SELECT 1") == [(1,)]


def test_a_query_ends_at_the_time_that_the_operator_set(tmp_path: Path) -> None:
    with running(tmp_path / "home", config="[store]\nquery_seconds = 1\nquery_bytes = 100000000\n") as store:
        started = time.monotonic()
        assert code(store, "SELECT count() FROM numbers(100000000000) WHERE sipHash64(number) = 1") == 159
        assert time.monotonic() - started < 15
        assert code(store, "SELECT groupArray(number) FROM numbers(100000000)") == 241


def test_the_process_leaves_with_its_parent(tmp_path: Path) -> None:
    with running(tmp_path / "home") as store:
        store.wardline.stop("store")
        script = (
            "import os, subprocess, sys, time; os.environ['WARDLINE_PARENT'] = str(os.getpid());"
            "subprocess.Popen(sys.argv[1:]); time.sleep(600)"
        )
        words = store.wardline.words("store")
        with subprocess.Popen([words[0], "-c", script, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
            child = store.wardline.wait_ready("store")
            parent.kill()
        wait_until(lambda: not os.path.exists(f"/proc/{child}") or _zombie(child), 5, "the store has left")


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_an_insert_whose_body_breaks_off_stores_nothing(store: Store) -> None:
    store.run("CREATE TABLE IF NOT EXISTS halves (a UInt32) ENGINE = MergeTree ORDER BY a")
    host, _, port = store.url.removeprefix("http://").partition(":")
    who = base64.b64encode(f"writer:{store.password('writer')}".encode()).decode()
    head = f"POST /?query=INSERT%20INTO%20halves%20FORMAT%20CSV HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {who}\r\n"
    for framing, part in (("Content-Length: 1000", b"1\n2\n3\n"), ("Transfer-Encoding: chunked", b"6\r\n1\n2\n3\n\r\n")):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + framing.encode() + b"\r\n\r\n" + part)
            time.sleep(0.2)
    status, _, _ = store.curl(path="/?query=INSERT%20INTO%20halves%20FORMAT%20CSV", user="writer", data=b"4\n")
    assert (status, store.rows("SELECT a FROM halves")) == (200, [(4,)])
    store.run("DROP TABLE halves")


def test_a_reader_cannot_fill_the_memory_with_a_body(store: Store) -> None:
    assert store.curl("-H", "Expect:", data=b" " * ((1 << 20) + 1))[0] == 413
    packed = subprocess.run(["gzip", "-c"], input=b" " * (64 << 20), capture_output=True, check=True).stdout
    assert store.curl("-H", "Expect:", "-H", "Content-Encoding: gzip", data=packed)[0] == 413


def test_a_stop_ends_the_queries_that_run(tmp_path: Path) -> None:
    with running(tmp_path / "home") as store:
        sql = "SELECT count() FROM numbers(100000000000) WHERE sipHash64(number) = 1"
        command = ["curl", "-sS", "-u", f"reader:{store.password('reader')}", "-d", sql, store.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
            count = "SELECT count() FROM system.processes WHERE query LIKE '%sipHash64(number) = 1'"
            wait_until(lambda: store.rows(count, user="writer") == [(1,)], 20, "the query runs")
            assert store.wardline.stop("store", 10) == 0
            assert b"QUERY_WAS_CANCELLED" in curl.communicate(timeout=20)[0]
