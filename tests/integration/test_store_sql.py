"""`wardline sql` as a person types it; most of it in this process, since a start takes seconds on a busy machine."""

import io
import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from pipeline.cli.main import main
from tests.support.store import Store, decision, frame_of


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Sql:
    def __init__(self, store: Store, capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._store, self._capfd, self._patch = store, capfd, patch

    def __call__(self, *words: str, stdin: str = "") -> Done:
        self._patch.setattr(sys, "stdin", io.StringIO(stdin))
        self._capfd.readouterr()
        command = self._store.wardline.words("sql", *words)
        try:
            code = main(command[command.index("sql") :])
        except SystemExit as left:
            code = int(left.code or 0)
        return Done(code, *self._capfd.readouterr())


@pytest.fixture
def sql(store: Store, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sql:
    return Sql(store, capfd, monkeypatch)


def test_an_answer_comes_as_csv_where_nobody_looks(store: Store) -> None:
    store.insert(frame_of([decision(seq) for seq in range(1, 8)], frame_no=1))
    done = store.wardline.run("sql", "SELECT count(), any(agent) FROM calls")
    assert (done.returncode, done.stdout, done.stderr) == (0, '7,"planner"\n', "")


def test_an_answer_comes_in_the_format_that_is_asked_for(sql: Sql) -> None:
    pretty = sql("SELECT 1 AS one", "--format", "pretty").stdout
    assert "one" in pretty
    assert "\u2502" in pretty
    assert json.loads(sql("SELECT 1 AS one", "--format", "json").stdout)["data"] == [{"one": 1}]
    assert sql("SELECT 1 AS one FORMAT TSVWithNames", "--format", "json").stdout == "one\n1\n"
    assert sql("SELECT 1 AS one FORMAT TSV SETTINGS max_threads = 1;").stdout == "1\n"
    assert sql("SELECT 'FORMAT CSV' -- format x\n").stdout == '"FORMAT CSV"\n'


def test_parameters_and_standard_input(sql: Sql) -> None:
    done = sql("-", "--param", "a=it's = x", "--param", "b=[1,2]", stdin="SELECT {a:String}, {b:Array(UInt8)}\n")
    assert done.stdout == '"it\'s = x","[1,2]"\n'


@pytest.mark.parametrize(("words", "says"), [
    (("SELECT * FROM nowhere",), "code 60 UNKNOWN_TABLE: unknown table expression identifier 'nowhere'"),
    (("SELEC 1",), "code 62 SYNTAX_ERROR: "),
    (("DROP TABLE records",), "code 164 READONLY: `DROP` is not allowed: this user may only read"),
    (("SELECT file('/etc/passwd')",), "code 497 ACCESS_DENIED: function `file` is not served"),
    (("SELECT 1", "--param", "x"), "--param: `x` is not NAME=VALUE"),
    (("SELECT {x:UInt8}",), "code 456 UNKNOWN_QUERY_PARAMETER: "),
    ((" ",), "the query is empty"),
    (("SELECT 1", "--format", "xml"), "argument --format: invalid choice: 'xml'"),
    (("SELECT 1", "--clickhouse", "http://127.0.0.1:1"), "the store at 127.0.0.1:1 does not answer"),
    (("SELECT 1", "--clickhouse", "ftp://x"), "clickhouse.url: `ftp://x` is not http(s)://HOST[:PORT]"),
])  # fmt: skip
def test_an_error_is_one_line_and_exit_code_2(sql: Sql, words: tuple[str, ...], says: str) -> None:
    done = sql(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"wardline: {says}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_a_home_without_a_store_says_so(sql: Sql) -> None:
    done = sql("--home", "/nonexistent/home", "SELECT 1")
    assert (done.returncode, done.stderr) == (2, "wardline: the store of `/nonexistent/home` is not up\n")


def test_a_reader_that_has_seen_enough_ends_it(store: Store) -> None:
    words = store.wardline.words("sql", "SELECT number FROM numbers(3000000)")
    script = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE);"
    script += "print(p.stdout.readline()); p.stdout.close(); print(p.stderr.read(), p.wait())"
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "b'0\\n'\nb'' 0\n"
