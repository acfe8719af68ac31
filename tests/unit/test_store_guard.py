"""The guard of the embedded store, query by query: what is let through, what is refused, and that disguise changes nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shells.store.guard import TEXT_SETTINGS, Guard
from pipeline.shells.store.lexer import tokens
from pipeline.shells.store.refusal import Refusal

FUNCTIONS = ("file", "url", "s3", "remote", "remoteSecure", "executable", "dictionary", "numbers", "values", "mysql", "python",
             "cluster", "view", "input", "eval", "loop", "merge", "sqlite", "viewExplain", "format")  # fmt: skip
SETTINGS = (("format_schema", "String"), ("filter", "String"), ("additional_table_filters", "Map"), ("url_base", "String"),
            ("format_avro_schema_registry_url", "URI"), ("max_threads", "UInt64"), ("log_comment", "String"),
            ("insert_deduplication_token", "String"), ("disk", "String"), ("select", "String"))  # fmt: skip
GUARD = Guard(functions=FUNCTIONS, settings=SETTINGS, caps={"max_execution_time": 120, "max_memory_usage": 1 << 32})


def verdict(sql: str, *, writer: bool = False) -> int:
    """0 when it is let through, else the code of the refusal."""
    try:
        GUARD.analyse(sql.encode(), writer=writer)
    except Refusal as refusal:
        return refusal.code
    return 0


ALLOWED = [
    "SELECT 1",
    "  /* a */ select 1 -- b\n",
    "(SELECT 1) UNION ALL (SELECT 2)",
    "WITH x AS (SELECT 1) SELECT * FROM x;",
    "FROM numbers(3) SELECT number",
    "SHOW TABLES",
    "DESCRIBE TABLE calls",
    "EXPLAIN SELECT 1",
    "EXISTS TABLE calls",
    "SET max_threads = 1",
    "USE wardline",
    "SELECT 'file(''/etc/passwd'')', \"INTO OUTFILE\", $$FROM INFILE url('x')$$",
    "SELECT format('{} {}', 1, 2) FROM values('a UInt8', 1)",
    "SELECT files FROM t WHERE url = 'x' AND s3 > 1 AND input = disk",
    "SELECT * APPLY(toString) FROM t",
    "SELECT name FROM system.settings WHERE name = 'format_schema'",
    "SELECT database, select, filter FROM t WHERE filter = 'x' AND disk = 'y'",
    "SELECT 1 SETTINGS max_threads = 1, max_execution_time = 5, log_comment = 'x' FORMAT JSON",
    "SELECT t.1.2, 1e-3, .5, 0x1F, 0b1, 1_000, -1 FROM t",
    "SELECT {x:String}, [1, 2], {'a': 1}",
    "SELECT 1 # comment\n",
    "SELECT 1 /* /* not nested */",
    "SELECT 'ünï“cödé”'",
]


@pytest.mark.parametrize("sql", ALLOWED)
def test_a_reader_may(sql: str) -> None:
    assert verdict(sql) == 0
    assert verdict(sql, writer=True) == 0


REFUSED = [
    "SELECT * FROM file('/etc/passwd')",
    "SELECT file('/etc/passwd')",
    "select FILE ('/etc/passwd')",
    "SELECT * FROM `file`('/etc/passwd')",
    'SELECT * FROM "file" /* x */ (\'/etc/passwd\')',
    "SELECT * FROM `fi\\x6ce`('/etc/passwd')",
    "SELECT * FROM `fi\\Nle`('/etc/passwd')",
    "SELECT file--\n('/etc/passwd')",
    "SELECT file#!\n('/etc/passwd')",
    "SELECT * FROM (SELECT * FROM (SELECT * FROM uRl('http://x')))",
    "SELECT * FROM s3('x')",
    "SELECT * FROM remote('x', system.one)",
    "SELECT * FROM remoteSecure('x', system.one)",
    "SELECT * FROM executable('x', TSV, 'a String')",
    "SELECT * FROM dictionary('x')",
    "SELECT dictGet('x', 'y', 1), dictGetOrDefault('x', 'y', 1, 2)",
    "SELECT * FROM mysql('x')",
    "SELECT * FROM python(x)",
    "SELECT * FROM merge('default', '.*')",
    "SELECT * FROM eval('SELECT 1')",
    "SELECT * FROM viewExplain('EXPLAIN', '', (SELECT 1))",
    "SELECT * APPLY(file) FROM (SELECT '/etc/passwd')",
    "SELECT * APPLY file FROM (SELECT '/etc/passwd')",
    "SELECT COLUMNS('x') APPLY(`file`) FROM (SELECT '/etc/passwd' AS x)",
    "SELECT arrayMap(file, ['/etc/passwd'])",
    "SELECT arrayMap(aiGenerate, ['x'])",
    "SELECT 1 PARALLEL WITH SYSTEM SHUTDOWN",
    "SELECT 1 FORMAT TSV parallel/**/with KILL QUERY WHERE 1",
    "SELECT 1 INTO OUTFILE '/tmp/x'",
    "SELECT 1 into/**/\noutfile '/tmp/x'",
    "SELECT 1 SETTINGS format_schema = '/etc/passwd'",
    "SELECT 1 SETTINGS `format_schema` = '/etc/passwd'",
    "SELECT 1 SETTINGS max_threads = 1, format_schema = 'x'",
    "SELECT * FROM (SELECT 1 SETTINGS max_threads = [1, 2], filter == 'file(1)')",
    "SELECT 1 FORMAT TSV SETTINGS additional_table_filters = {'t': 'file(1)'}",
    "SET url_base = 'file://'",
    "SET max_threads = 1, dialect = 'kusto'",
    "SELECT 1 SETTINGS polyglot_dialect = 'x'",
    "SELECT 1 SETTINGS allow_ddl = 1",
    "KILL QUERY WHERE 1",
    "SYSTEM SHUTDOWN",
    "BACKUP TABLE t TO File('x')",
    "GRANT ALL ON *.* TO x",
    "ATTACH TABLE t FROM '/x'",
]


@pytest.mark.parametrize("sql", REFUSED)
def test_nobody_may(sql: str) -> None:
    assert verdict(sql) == 497
    assert verdict(sql, writer=True) == 497


@pytest.mark.parametrize("sql", [
    "INSERT INTO t VALUES (1)", "insert into t SELECT 1", "CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a",
    "DROP TABLE t", "ALTER TABLE t DELETE WHERE 1", "TRUNCATE TABLE t", "OPTIMIZE TABLE t", "RENAME TABLE a TO b",
    "DELETE FROM t WHERE 1", "EXCHANGE TABLES a AND b", "DETACH TABLE t", "UPDATE t SET a = 1 WHERE 1", "SET readonly = 0",
    "SELECT 1 SETTINGS readonly=0",
])  # fmt: skip
def test_a_reader_may_not_write(sql: str) -> None:
    assert verdict(sql) == 164


@pytest.mark.parametrize("sql", [
    "INSERT INTO t VALUES (1)", "INSERT INTO t SELECT 1", "CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a",
    "CREATE OR REPLACE VIEW v AS SELECT 1", "CREATE DATABASE IF NOT EXISTS d ENGINE = Atomic", "ALTER TABLE t DELETE WHERE 1",
    "CREATE MATERIALIZED VIEW v ENGINE = `MergeTree` ORDER BY a AS SELECT 1 AS a",
    "INSERT INTO t SELECT engine = 'File' FROM s", "INSERT INTO t (input) SELECT input FROM s",
])  # fmt: skip
def test_a_writer_may(sql: str) -> None:
    assert verdict(sql, writer=True) == 0


@pytest.mark.parametrize("sql", [
    "INSERT INTO t FROM INFILE '/etc/passwd' FORMAT CSV", "INSERT INTO t SELECT * FROM file('/etc/passwd')",
    "INSERT INTO t VALUES (file('/etc/passwd'))", "INSERT INTO FUNCTION file('/tmp/x') SELECT 1",
    "INSERT INTO TABLE FUNCTION url('http://x') VALUES (1)", "CREATE TABLE t (a UInt8) ENGINE = File(CSV, '/etc/passwd')",
    "CREATE TABLE t ENGINE URL('http://x')", "CREATE TABLE t AS file('/etc/passwd')",
    "CREATE TABLE t (a UInt8) ENGINE = {e:Identifier}('/x')",
    "CREATE DATABASE d ENGINE = Filesystem('/')", "CREATE DICTIONARY d (a UInt8) PRIMARY KEY a SOURCE(FILE(path '/x'))",
    "CREATE FUNCTION f AS x -> x", "CREATE USER u",
    "CREATE NAMED COLLECTION c AS a = 1", "CREATE TEMPORARY TABLE t (a UInt8)", "ALTER TABLE t FREEZE", "ALTER USER u",
    "ALTER TABLE t FETCH PARTITION 1 FROM 'x'", "CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a SETTINGS disk = 'x'",
    "CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a SETTINGS disk = disk(type = local, path = '/')",
    "INSERT INTO t SETTINGS format_schema = 'x' FORMAT CapnProto", "ALTER TABLE t MODIFY SETTING disk = 'x'",
])  # fmt: skip
def test_a_writer_may_not_reach_beyond_the_store(sql: str) -> None:
    assert verdict(sql, writer=True) == 497


@pytest.mark.parametrize("sql", [
    "", "  -- nothing\n", "SELECT 1; SELECT 2", "SELECT 1;;DROP TABLE t", "SELEC 1", "SELECT 'open", "SELECT `open",
    "SELECT /* open", "SELECT $a$ open", "SELECT \u201cfile\u201d('/etc/passwd')", "SELECT f\u00a0('/etc/passwd')",
    "SELECT 1\u2028", "SELECT 1#2",
    "SELECT '\\xzz'", "SELECT TOP 1file('x')", "SELECT \x00", "1 + 1", "INSERT INTO t FORMAT", "'SELECT 1'",
])  # fmt: skip
def test_what_is_not_understood_is_a_syntax_error(sql: str) -> None:
    assert verdict(sql, writer=True) == 62


@pytest.mark.parametrize("value", ["0", "121", "-1", "'0'", "DEFAULT", "= 0", "1e9", "(0)", "nan", "inf", "{x:UInt8}"])
def test_a_limit_cannot_be_lifted(value: str) -> None:
    assert verdict(f"SELECT 1 SETTINGS max_execution_time = {value}") == 452
    assert verdict(f"SET max_threads = 1, max_execution_time = {value}") == 452


@pytest.mark.parametrize(("value", "code"), [
    ("five", 0), ("wardline.calls", 0), ("file", 497), ("FILE", 497), ("x.file", 497), ("\\x66ile", 497), ("`file`", 497),
    ("/etc/passwd", 497), ("file(1)", 497), ("", 497),
])  # fmt: skip
def test_a_parameter_that_names_something_is_read_as_a_part_of_the_text(value: str, code: int) -> None:
    for sql in ("SELECT arrayMap({f:Identifier}, ['x'])", "SELECT { f /* */ : IDENTIFIER }", "SELECT {`f`:Identifier}"):
        try:
            GUARD.analyse(sql.encode(), writer=False, params={"f": value})
            found = 0
        except Refusal as refusal:
            found = refusal.code
        assert found == code, sql
    assert GUARD.analyse(b"SELECT {f:String}", writer=False, params={"f": value}).reads


def test_a_limit_can_be_tightened() -> None:
    assert verdict("SELECT 1 SETTINGS max_execution_time = 5, max_memory_usage = '100000'") == 0


def data_of(text: str, *, whole: bool = True) -> tuple[str, str, str]:
    """Format, data, and the statement that reads it from a file, of a writer's insert."""
    data = GUARD.analyse(text.encode(), writer=True, whole=whole).data
    assert data is not None
    return data.format, text.encode()[data.begins :].decode(), data.read_from(text.encode(), "/f")


def test_an_inserts_data_begins_behind_its_format() -> None:
    expected = ("CSV", "1,2\n3,4", "INSERT INTO t (a, b)  FROM INFILE '/f'  FORMAT CSV")
    assert data_of("INSERT INTO t (a, b) FORMAT CSV\n1,2\n3,4") == expected
    assert data_of("INSERT INTO t (a, b) FORMAT CSV \t\r\n1,2\n3,4") == expected


def test_an_insert_keeps_its_settings_and_the_data_is_not_read_as_sql() -> None:
    text = "insert into t settings max_threads = 1 format JSONEachRow {\"a\": \"'; DROP TABLE t; file('x')\"}"
    name, data, sql = data_of(text)
    assert (name, data) == ("JSONEachRow", text[text.index("{") :])
    assert sql == "insert into t  FROM INFILE '/f' settings max_threads = 1  FORMAT JSONEachRow"


def test_an_insert_from_input_reads_the_file_in_its_place() -> None:
    text = "INSERT INTO t (a) SELECT a FROM input('a UInt8, \\'b\\' String') WHERE throwIf(a = 1) = 0 FORMAT ArrowStream\n\xff"
    assert data_of(text) == (
        "ArrowStream", "\xff",
        "INSERT INTO t (a) SELECT a FROM file('/f', 'ArrowStream', 'a UInt8, \\'b\\' String') WHERE throwIf(a = 1) = 0 ",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sql", "table"),
    [
        ("INSERT INTO findings_stored FORMAT Arrow x", "findings_stored"),
        ("insert into table `wardline`.`findings_stored` (`id`) SETTINGS a=0 FORMAT Arrow x", "findings_stored"),
        ("INSERT INTO wardline.records (a) SELECT a FROM input('a String') FORMAT ArrowStream x", "records"),
        ("INSERT responses_stored VALUES (1)", "responses_stored"),
    ],
)
def test_the_table_of_an_insert_is_known(sql: str, table: str) -> None:
    assert GUARD.analyse(sql.encode(), writer=True).into == table


def test_values_are_read_as_sql_unless_they_are_too_many() -> None:
    statement = GUARD.analyse(b"INSERT INTO t VALUES (1), (now())", writer=True)
    assert statement.data is None
    assert data_of("INSERT INTO t VALUES (1), (2)", whole=False)[:2] == ("Values", " (1), (2)")


@pytest.mark.parametrize("sql", [
    "INSERT INTO t SELECT * FROM s FORMAT CSV 1", "INSERT INTO t SELECT * FROM input('a UInt8')",
    "INSERT INTO t SELECT * FROM input(a) FORMAT CSV 1", "INSERT INTO t SELECT * FROM input('a'), input('b') FORMAT CSV 1",
])  # fmt: skip
def test_data_without_a_place_is_a_syntax_error(sql: str) -> None:
    assert verdict(sql, writer=True) == 62


blanks = st.lists(st.sampled_from([" ", "\n", "\t", "/**/", "/* ' */", "-- \" \n", "# `\n", "#!'\n"]), max_size=3).map("".join)


@st.composite
def disguises(draw: st.DrawFn, name: str) -> str:
    """The same name for the engine: another case where that is free, quotes, escapes that say the same letter."""
    if draw(st.booleans()):
        return "".join(draw(st.sampled_from([one.lower(), one.upper()])) for one in name)
    quote = draw(st.sampled_from('`"'))
    inner = "".join(draw(st.sampled_from([one, f"\\x{ord(one):02x}", f"\\N{one}"])) for one in name)
    return quote + inner + quote


@given(name=disguises("file"), before=blanks, between=blanks, around=st.integers(0, 3))
def test_no_disguise_hides_a_function(name: str, before: str, between: str, around: int) -> None:
    sql = f"SELECT {'(' * around}{before} {name}{between}('/etc/passwd'){')' * around}"
    assert verdict(sql) == 497


@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_a_literal_may_hold_anything(text: str) -> None:
    quoted = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    (only,) = tokens(quoted.encode())
    assert (only.kind, only.value) == ("text", text)
    assert verdict(f"SELECT {quoted}") == 0


@given(sql=st.text("SELECTfromfile'`\"()/*-#\\\n;=$1.", max_size=30))
def test_every_text_is_allowed_or_refused_and_never_breaks_the_guard(sql: str) -> None:
    assert verdict("SELECT " + sql) in (0, 62, 164, 497)


def test_the_settings_that_hold_a_text_are_listed_one_by_one() -> None:
    assert TEXT_SETTINGS.fullmatch("log_comment")
    assert not TEXT_SETTINGS.fullmatch("format_schema_message_name")
