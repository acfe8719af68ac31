"""The store's tables and views as numbered files of SQL, `schemas/migrations`, and how a database is brought up to date."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from schemas.errors import OperatorFault
from schemas.store import quote_name, quote_text


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file of SQL. Each statement may run again; `digest` is SHA-256 of the file's text, in hex."""

    number: int
    name: str
    text: str

    @property
    def digest(self) -> str:
        """What `migrations` remembers of it."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def statements(self, database: str) -> list[str]:
        """The statements in order, `{database}` put in."""
        lines = [line for line in self.text.splitlines() if not line.lstrip().startswith("--")]
        parts = "\n".join(lines).replace("{database}", quote_name(database)).split(";\n")
        return [part.strip().rstrip(";") for part in parts if part.strip().rstrip(";")]


def load_migrations() -> tuple[Migration, ...]:
    """The migrations of this program, in their order: 1, 2, 3, ..."""
    folder = files("schemas") / "migrations"
    found = sorted(item.name for item in folder.iterdir() if item.name.endswith(".sql"))
    loaded = tuple(Migration(int(name[:4]), name.removesuffix(".sql"), (folder / name).read_text()) for name in found)
    assert [m.number for m in loaded] == list(range(1, len(loaded) + 1)), f"migrations are not numbered 1, 2, ...: {found}"
    return loaded


MIGRATIONS: Final = load_migrations()


def migrate(
    execute: Callable[[str], Sequence[Sequence[Any]]], database: str, migrations: Sequence[Migration] = MIGRATIONS
) -> list[int]:
    """Bring the database up to date; returns the numbers that were applied now.

    `execute(sql)` runs one statement and returns its rows. There is no lock: every statement may run twice, also at the same
    time as another process's, and a migration is written down after its last statement, so a crash in between runs it again.
    Raises OperatorFault when an applied migration is not the one of this program, or when the database is newer than it.
    """
    base = quote_name(database)
    execute(f"CREATE DATABASE IF NOT EXISTS {base} ENGINE = Atomic")
    execute(
        f"CREATE TABLE IF NOT EXISTS {base}.migrations (number UInt32, name String, digest String,"
        " applied DateTime('UTC') DEFAULT now()) ENGINE = MergeTree ORDER BY number"
    )
    known = {migration.number: migration for migration in migrations}
    done: set[int] = set()
    for number, name, digest in execute(f"SELECT DISTINCT number, name, digest FROM {base}.migrations ORDER BY number"):
        ours, where = known.get(int(number)), f"database `{database}`: migration `{name}`"
        if ours is None:
            raise OperatorFault(f"{where} has number {number}, this program knows up to {len(known)}")
        if ours.digest != digest:
            raise OperatorFault(f"{where} was applied with digest {digest[:12]}, this program has {ours.digest[:12]}")
        done.add(int(number))
    applied = []
    for migration in migrations:
        if migration.number in done:
            continue
        for statement in migration.statements(database):
            execute(statement)
        execute(
            f"INSERT INTO {base}.migrations (number, name, digest) VALUES"
            f" ({migration.number}, {quote_text(migration.name)}, {quote_text(migration.digest)})"
        )
        applied.append(migration.number)
    return applied
