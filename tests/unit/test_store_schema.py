"""Migrations and statements of the store, without one: what runs, what is written down, what is refused."""

import re
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.shells.store.sessions import SESSION_STATEMENTS_MAX, SESSIONS_MAX, Sessions
from schemas.errors import OperatorFault
from schemas.migrate import MIGRATIONS, Migration, migrate
from schemas.store import (
    INSERT_SCHEMA,
    clickhouse_type,
    frame_row,
    insert_sql,
    quote_name,
    quote_text,
    structure,
    take_over_sql,
)


class Database:
    """Remembers what was run, and which migrations were written down; dies at statement `dies_at`."""

    def __init__(self, *, dies_at: int = -1) -> None:
        self.ran: list[str] = []
        self.applied: dict[int, tuple[str, str]] = {}
        self._dies_at = dies_at

    def execute(self, sql: str) -> Sequence[Sequence[Any]]:
        if len(self.ran) == self._dies_at:
            raise ConnectionError("kill -9")
        self.ran.append(sql)
        if sql.startswith("SELECT DISTINCT number"):
            return [(number, *rest) for number, rest in sorted(self.applied.items())]
        if found := re.match(r"INSERT INTO `\w+`\.migrations .* VALUES \((\d+), '(\w+)', '(\w+)'\)", sql):
            self.applied[int(found[1])] = (found[2], found[3])
        return []


ONE = Migration(1, "0001_one", "CREATE TABLE {database}.a;\n-- why;\nCREATE TABLE {database}.b;\n")
TWO = Migration(2, "0002_two", "CREATE VIEW {database}.c AS SELECT ';'\n")


def test_migrations_run_once_in_their_order() -> None:
    database = Database()
    assert migrate(database.execute, "w", [ONE, TWO]) == [1, 2]
    assert [sql for sql in database.ran if ".a" in sql or ".b" in sql or ".c" in sql] == [
        "CREATE TABLE `w`.a", "CREATE TABLE `w`.b", "CREATE VIEW `w`.c AS SELECT ';'",
    ]  # fmt: skip
    assert database.applied == {1: ("0001_one", ONE.digest), 2: ("0002_two", TWO.digest)}
    database.ran.clear()
    assert migrate(database.execute, "w", [ONE, TWO]) == []
    assert not any("`w`.a" in sql for sql in database.ran)


@pytest.mark.parametrize("step", range(8))
def test_a_crash_between_any_two_statements_is_made_good_by_the_next_start(step: int) -> None:
    database = Database(dies_at=step)
    with pytest.raises(ConnectionError):
        migrate(database.execute, "w", [ONE, TWO])
    again = Database()
    again.applied = database.applied
    migrate(again.execute, "w", [ONE, TWO])
    assert set(again.applied) == {1, 2}
    for statement in [*ONE.statements("w"), *TWO.statements("w")]:
        assert statement in database.ran + again.ran


def test_a_changed_migration_is_refused_before_anything_runs() -> None:
    database = Database()
    migrate(database.execute, "w", [ONE])
    changed = Migration(1, "0001_one", ONE.text + "CREATE TABLE {database}.d;\n")
    database.ran.clear()
    with pytest.raises(OperatorFault, match=r"^database `w`: migration `0001_one` was applied with digest .*"):
        migrate(database.execute, "w", [changed, TWO])
    assert not any(".d" in sql or ".c" in sql for sql in database.ran)


def test_a_database_from_a_newer_program_is_refused() -> None:
    database = Database()
    migrate(database.execute, "w", [ONE, TWO])
    with pytest.raises(OperatorFault, match="`0002_two` has number 2, this program knows up to 1"):
        migrate(database.execute, "w", [ONE])


def test_every_statement_of_ours_may_run_again() -> None:
    for migration in MIGRATIONS:
        for statement in migration.statements("w"):
            again = r"CREATE (TABLE IF NOT EXISTS|OR REPLACE VIEW) `w`\.|ALTER TABLE `w`\.\w+ ADD INDEX IF NOT EXISTS "
            assert re.match(again, statement), statement[:60]
            assert "{database}" not in statement


def test_the_table_has_the_columns_of_an_insert_in_their_types() -> None:
    (table,) = [s for s in MIGRATIONS[0].statements("w") if "`w`.records\n" in s]
    columns = re.findall(r"^    (\w+) (.+?) CODEC\(", table, re.MULTILINE)
    found = {name: kind.replace("LowCardinality(String)", "text").replace("String", "text") if kind.endswith("String)") or
             kind == "String" else kind for name, kind in columns}  # fmt: skip
    wanted = {field.name: clickhouse_type(field.type) for field in INSERT_SCHEMA}
    assert list(found) == list(wanted)
    for name, kind in wanted.items():
        assert found[name] == ("text" if kind in ("String", "LowCardinality(String)") else kind), name


def test_the_insert_names_every_column_and_every_partition() -> None:
    sql = insert_sql("w", {3: 7, 1: 5})
    assert sql.startswith("INSERT INTO `w`.records (`kind`, `boot`, ")
    assert "IN ((1, 5), (3, 7))" in sql
    assert "partition IN (1, 3)" in sql
    assert "!= 2, 'FENCED') = 0 FORMAT ArrowStream" in sql
    assert quote_text(structure(INSERT_SCHEMA)) in sql


def test_names_and_texts_are_quoted() -> None:
    assert quote_name("a`b\\") == "`a\\`b\\\\`"
    assert quote_text("a'b\\") == "'a\\'b\\\\'"
    write, read = take_over_sql("w", [2, 1, 2], "o'wner")
    assert "[1, 2]" in write
    assert "'o\\'wner'" in write
    assert "'o\\'wner'" in read


def test_a_frames_row_is_zero_where_it_says_nothing() -> None:
    row = frame_row(enforcer="e", enforcer_boot=1, partition=2, frame_no=3, ingested_s=4, digest=b"d" * 32, previous=bytes(32),
                    records=5, size=6, created_us=7, ranges=[8, 9, 10], flag="", offset=11, head=b"h")  # fmt: skip
    assert list(row) == INSERT_SCHEMA.names
    assert (row["kind"], row["boot"], row["call_seq"], row["seq"]) == (0, 0, 1, 3)
    assert (row["agent"], row["trace_id"], row["time"]) == ("", bytes(16), 0)


def test_sessions_belong_to_their_user_and_are_bounded() -> None:
    sessions = Sessions()
    assert sessions.open("a", "s") == (False, ())
    sessions.say("a", "s", "SET x = 1")
    assert sessions.open("a", "s") == (True, ("SET x = 1",))
    assert sessions.open("b", "s") == (False, ())
    for n in range(2 * SESSION_STATEMENTS_MAX):
        sessions.say("a", "s", f"SET x = {n}")
    there, said = sessions.open("a", "s")
    assert (there, len(said), said[-1]) == (True, SESSION_STATEMENTS_MAX, f"SET x = {2 * SESSION_STATEMENTS_MAX - 1}")
    for n in range(SESSIONS_MAX):
        sessions.open("c", str(n))
    assert sessions.open("a", "s") == (False, ())
    sessions.say("nobody", "s", "SET x = 1")
