"""clickhouse_connect and curl on the embedded store, as on a server: types, parameters, settings, errors, formats both ways."""

import datetime as dt
import gzip
import ipaddress
import json
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import clickhouse_connect
import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from tests.support.store import Store

TYPES: dict[str, tuple[str, list[Any]]] = {
    "u8": ("UInt8", [0, 255]),
    "u64": ("UInt64", [0, 2**64 - 1]),
    "i64": ("Int64", [-(2**63), 2**63 - 1]),
    "u256": ("UInt256", [0, 2**256 - 1]),
    "f64": ("Float64", [-0.5, 1e300]),
    "dec": ("Decimal(18, 4)", [Decimal("-1.2500"), Decimal("99999.9999")]),
    "txt": ("String", ["", "it's\ta\\ \u00fc\u4e16\U0001f600"]),
    "fix": ("FixedString(4)", [b"\0\0\0\0", b"ab\xff\0"]),
    "low": ("LowCardinality(String)", ["a", "a"]),
    "nul": ("Nullable(Int32)", [None, -7]),
    "day": ("Date", [dt.date(1970, 1, 1), dt.date(2026, 2, 28)]),
    "sec": ("DateTime('UTC')", [dt.datetime(1970, 1, 1), dt.datetime(2026, 2, 28, 1, 2, 3)]),
    "mic": ("DateTime64(6, 'UTC')", [dt.datetime(2000, 1, 1, 0, 0, 0, 1), dt.datetime(2026, 2, 28, 1, 2, 3, 999999)]),
    "uid": ("UUID", [uuid.UUID(int=0), uuid.UUID("61f0c404-5cb3-11e7-907b-a6006ad3dba0")]),
    "ip4": ("IPv4", [ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("10.1.2.3")]),
    "ip6": ("IPv6", [ipaddress.ip_address("::"), ipaddress.ip_address("2001:db8::1")]),
    "enu": ("Enum8('a' = 1, 'b' = 2)", ["a", "b"]),
    "yes": ("Bool", [False, True]),
    "arr": ("Array(Array(UInt16))", [[], [[1], [2, 3]]]),
    "tup": ("Tuple(UInt8, String)", [(0, ""), (1, "x")]),
    "map": ("Map(String, UInt32)", [{}, {"k": 1, "l": 2}]),
}


@pytest.fixture
def table(store: Store) -> Iterator[str]:
    columns = ", ".join(f"{name} {kind}" for name, (kind, _) in TYPES.items())
    store.run("DROP TABLE IF EXISTS types")
    store.run(f"CREATE TABLE types (n UInt8, {columns}) ENGINE = MergeTree ORDER BY n")
    yield "types"
    store.run("DROP TABLE types")


ROWS = [[n, *(values[n] for _, values in TYPES.values())] for n in (0, 1)]


@pytest.mark.parametrize("compress", [False, "lz4", "zstd", "gzip"])
def test_every_type_goes_in_and_comes_out_in_native(store: Store, table: str, compress: str | bool) -> None:
    with store.connect("writer", compress=compress) as client:
        client.insert(table, ROWS, column_names=["n", *TYPES])
        found = client.query(f"SELECT * FROM {table} ORDER BY n").result_rows
    assert [list(row) for row in found] == ROWS


def test_arrow_goes_in_and_comes_out(store: Store) -> None:
    columns = "a UInt64, b LowCardinality(String), c DateTime64(6, 'UTC'), d Array(String), e FixedString(2)"
    store.run(f"CREATE TABLE arrows ({columns}) ENGINE = MergeTree ORDER BY a")
    given = pa.table({
        "a": pa.array(range(5000), pa.uint64()), "b": pa.array([f"v{n % 7}" for n in range(5000)]).dictionary_encode(),
        "c": pa.array(range(5000), pa.timestamp("us", tz="UTC")), "d": pa.array([["x"] * (n % 3) for n in range(5000)]),
        "e": pa.array([b"ab"] * 5000, pa.binary(2)),
    })  # fmt: skip
    client = store.client("writer")
    client.insert_arrow("arrows", given)
    found = client.query_arrow("SELECT * FROM arrows ORDER BY a", use_strings=True)
    assert found.num_rows == 5000
    for name in ("a", "c", "d", "e"):
        assert found[name].to_pylist() == given[name].to_pylist(), name
    assert found["b"].cast(pa.string()).to_pylist() == given["b"].to_pylist()
    for codec in ("lz4", "zstd"):
        client.raw_insert("arrows", insert_block=pa.Codec(codec).compress(arrow_file(given), asbytes=True), fmt="Arrow",
                          compression=codec)  # fmt: skip
    assert store.rows("SELECT count() FROM arrows") == [(15000,)]
    store.run("DROP TABLE arrows")


def arrow_file(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(("kind", "value"), [
    ("UInt8", 7), ("String", "it's\ta \\ {x} \u00fc\n"), ("Array(String)", ["a'b", "c\\d", ""]), ("Float64", 0.5),
    ("DateTime", dt.datetime(2020, 1, 1)), ("Nullable(String)", None), ("Array(UInt64)", [1, 2**63]), ("Bool", True),
    ("Date", dt.date(2020, 2, 29)), ("Tuple(UInt8, String)", (1, "x")),
])  # fmt: skip
def test_a_parameter_arrives_as_it_was(store: Store, kind: str, value: Any) -> None:
    assert store.rows(f"SELECT {{x:{kind}}}", parameters={"x": value}) == [(value,)]


def test_many_parameters_may_come_in_a_form(store: Store) -> None:
    with store.connect("reader", form_encode_query_params=True) as client:
        query, parameters = "SELECT length({x:Array(UInt32)}), {y:String}", {"x": list(range(9000)), "y": "z"}
        assert client.query(query, parameters=parameters).result_rows == [(9000, "z")]


def test_a_parameter_can_name_a_column(store: Store) -> None:
    assert store.rows("SELECT {c:Identifier} FROM (SELECT 5 AS five)", parameters={"c": "five"}) == [(5,)]


def test_settings_hold_for_one_query(store: Store) -> None:
    query = "SELECT toInt32(getSetting('max_threads')), toUInt8(getSetting('extremes'))"
    default = store.rows(query)
    assert store.rows(query, settings={"max_threads": 1, "extremes": 1}) == [(1, 1)]
    assert store.rows(query + " SETTINGS extremes = 1")[0][1] == 1
    assert store.rows(query) == default


def test_a_session_remembers_what_was_set_and_used(store: Store) -> None:
    first, second = ({"session_id": str(uuid.uuid4())} for _ in range(2))
    with store.connect("reader", **first) as one, store.connect("reader", **second) as two:
        query = "SELECT toInt32(getSetting('max_block_size')), currentDatabase()"
        one.command("SET max_block_size = 7")
        assert one.query(query).result_rows == [(7, "wardline")]
        assert two.query(query).result_rows != [(7, "wardline")]
    path = f"/?session_id={uuid.uuid4()}"
    assert store.curl(path=path + "&session_check=1", data=b"SELECT 1")[1]["x-clickhouse-exception-code"] == "372"
    assert store.curl(path=path, data=b"USE system")[0] == 200
    assert store.curl(path=path + "&session_check=1", data=b"SELECT currentDatabase()")[2] == b"system\n"


@pytest.mark.parametrize(("sql", "code", "status"), [
    ("SELECT * FROM nowhere", 60, 404), ("SELECT nothing", 47, 404), ("SELECT nofunction(1)", 46, 404), ("SELECT 1 +", 62, 400),
    ("SELECT 1 FORMAT Nonsense", 73, 404), ("SELECT {x:UInt8}", 456, 400), ("SELECT throwIf(1, 'no')", 395, 400),
    ("SELECT 1 SETTINGS nonsense = 1", 115, 404), ("SELECT toDate('x')", 38, 400), ("SELECT 1 FROM nowhere.t", 81, 404),
    ("SELECT 1 FORMAT ArrowTable", 73, 404), ("SELECT 1 + 'a'", 43, 400),
])  # fmt: skip
def test_an_error_has_its_code_name_and_status(store: Store, sql: str, code: int, status: int) -> None:
    found, headers, body = store.curl(data=sql.encode())
    assert (found, headers["x-clickhouse-exception-code"]) == (status, str(code)), body
    assert body.startswith(f"Code: {code}. DB::Exception: ".encode())
    assert body.count(b"\n") == 1
    assert body.count(b"DB::Exception") == 1
    with pytest.raises(DatabaseError) as fault:
        store.client().command(sql)
    assert fault.value.code == code


def test_curl_asks_in_every_way(store: Store) -> None:
    assert store.curl(path="/?query=SELECT%201")[::2] == (200, b"1\n")
    assert store.curl(data=b"SELECT 1, 'a'")[2] == b"1\ta\n"
    assert store.curl(path="/?query=SELECT", data=b"2")[2] == b"2\n"
    assert store.curl(path="/?query=SELECT%20%7Bx:String%7D&param_x=a%22b")[2] == b'a"b\n'
    assert store.curl(path="/?default_format=JSONEachRow", data=b"SELECT 1 AS a")[2] == b'{"a":1}\n'
    assert store.curl("-H", "X-ClickHouse-Format: CSV", data=b"SELECT 'a'")[2] == b'"a"\n'
    assert store.curl(path="/?database=system", data=b"SELECT count() FROM one")[2] == b"1\n"
    assert store.curl("-H", "X-ClickHouse-Database: system", data=b"SELECT count() FROM one")[2] == b"1\n"
    assert store.curl(data=b"SELECT count() FROM calls")[2] == b"0\n"
    assert store.curl(user="reader")[2] == b"Ok.\n"
    status, headers, body = store.curl("-I", path="/?query=SELECT%201")
    assert (status, headers["x-clickhouse-format"], body) == (200, "TabSeparated", b"")


def test_the_answer_names_format_query_and_cost(store: Store) -> None:
    _, headers, body = store.curl(path="/?query_id=mine", data=b"SELECT number FROM system.numbers LIMIT 10 FORMAT JSON")
    assert headers["content-type"] == "application/json; charset=UTF-8"
    assert (headers["x-clickhouse-format"], headers["x-clickhouse-query-id"]) == ("JSON", "mine")
    assert headers["x-clickhouse-timezone"]
    assert json.loads(body)["rows"] == 10
    summary = json.loads(headers["x-clickhouse-summary"])
    assert (summary["result_rows"], int(summary["read_rows"]) >= 10) == ("10", True)


@pytest.mark.parametrize("name", ["gzip", "zstd", "lz4", "br"])
def test_answers_are_packed_as_asked(store: Store, name: str) -> None:
    query = b"SELECT number FROM numbers(10000)"
    plain = store.curl(data=query)[2]
    _, headers, packed = store.curl("-H", f"Accept-Encoding: {name}", data=query)
    assert headers["content-encoding"] == name
    assert len(packed) < len(plain)
    stream = pa.CompressedInputStream(pa.BufferReader(packed), {"br": "brotli"}.get(name, name))
    assert stream.read() == plain


def test_curl_unpacks_what_it_asks_for(store: Store) -> None:
    _, headers, body = store.curl("--compressed", data=b"SELECT number FROM numbers(10000)")
    assert "content-encoding" in headers
    assert len(body.splitlines()) == 10000
    _, headers, _ = store.curl("--compressed", path="/?enable_http_compression=0", data=b"SELECT number FROM numbers(10000)")
    assert "content-encoding" not in headers


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def test_inserts_take_any_format_and_packing(store: Store) -> None:
    store.run("CREATE TABLE formats (a UInt32, b String) ENGINE = MergeTree ORDER BY a")
    insert = urllib.parse.quote("INSERT INTO formats (a, b) FORMAT CSV")
    chosen = "INSERT INTO formats SELECT a, b FROM input('a UInt32, b String') WHERE a < 3 FORMAT CSV"
    chosen = urllib.parse.quote(chosen)
    csv = b'1,"x"\n2,"y"\n'
    for words, path, data in (
        ([], "/", b"INSERT INTO formats VALUES (1, 'x'), (1 + 1, lower('Y'))"),
        ([], "/?query=INSERT%20INTO%20formats%20VALUES", b"(1, 'x'), (2, 'y')"),
        ([], "/?query=INSERT%20INTO%20formats%20VALUES%20(1,%20'x'),", b"(2, 'y')"),
        ([], "/", b"INSERT INTO formats (a, b) FORMAT CSV\n" + csv),
        ([], f"/?query={insert}", csv),
        ([], "/", b"INSERT INTO formats SETTINGS input_format_parallel_parsing = 0 FORMAT JSONEachRow "
                  b'{"a":1,"b":"x"} {"a":2,"b":"y"}'),
        ([], "/", b"INSERT INTO formats FORMAT TabSeparated\n1\tx\n2\ty\n"),
        (["-H", "Content-Encoding: gzip"], f"/?query={insert}", gzip.compress(csv)),
        (["-H", "Content-Encoding: lz4"], f"/?query={insert}", bytes(pa.Codec("lz4").compress(csv, asbytes=True))),
        (["-H", "Content-Encoding: zstd"], "/", zstd(b"INSERT INTO formats FORMAT CSV\n" + csv)),
        (["-H", "Content-Encoding: zstd"], f"/?query={insert}", b"".join(map(zstd, csv.splitlines(keepends=True)))),
        ([], "/", b"INSERT INTO formats SELECT number + 1, ['x', 'y'][number + 1] FROM numbers(2)"),
        ([], f"/?query={chosen}", csv + b'3,"z"\n'),
    ):  # fmt: skip
        status, headers, body = store.curl(*words, path=path, user="writer", data=data)
        assert status == 200, (path, data, body)
        assert json.loads(headers["x-clickhouse-summary"])["written_rows"] == "2"
        assert store.rows("SELECT * FROM formats ORDER BY a") == [(1, "x"), (2, "y")], (path, data)
        store.run("TRUNCATE TABLE formats")
    status, _, body = store.curl(path=f"/?query={insert}", user="writer", data=b"not,a,number\n")
    assert (status, body.startswith(b"Code: ")) == (400, True), body
    assert store.rows("SELECT count() FROM formats") == [(0,)]
    store.run("DROP TABLE formats")


def test_a_body_may_come_in_chunks(store: Store) -> None:
    assert store.curl("-H", "Transfer-Encoding: chunked", data=b"SELECT 3")[2] == b"3\n"


def test_the_client_finds_its_way_at_connect(store: Store) -> None:
    with clickhouse_connect.get_client(
        host="127.0.0.1", port=int(store.url.rpartition(":")[2]), username="reader", password=store.password("reader")
    ) as client:
        assert client.server_version.split(".")[0].isdigit()
        assert client.command("SELECT 1") == 1
        assert client.ping()
        assert [tuple(row) for row in client.query("SELECT number FROM numbers(3)").result_rows] == [(0,), (1,), (2,)]
        with client.query_row_block_stream("SELECT number FROM numbers(200000)") as stream:
            assert sum(len(block) for block in stream) == 200_000
        assert client.query("SELECT * FROM calls LIMIT 0").column_names[0] == "call_id"


def test_many_clients_ask_at_once(store: Store) -> None:
    found: list[int] = []

    def ask(n: int) -> None:
        with store.connect("reader") as client:
            found.extend(client.command(f"SELECT {n} + sum(number) FROM numbers(1000)") - 499_500 for _ in range(5))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(n for n in range(12) for _ in range(5))
