"""The page about the store is true: its queries run, its columns are those of the view, its limits those of the program."""

import re

import pytest

from pipeline.shells.store import engine, front, memory, sessions
from tests.support.data import REPOSITORY
from tests.support.store import Store, decision, effect, frame_of

PAGE = (REPOSITORY / "docs" / "store.md").read_text()
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_every_query_of_the_page_runs(store: Store, query: str) -> None:
    store.insert(frame_of([decision(1), effect(2, 1), decision(3, verdict=0)], frame_no=1))
    store.rows(query)


def test_the_page_has_every_column_of_calls(store: Store) -> None:
    table = PAGE[PAGE.index("**`calls`**") : PAGE.index("**`inventory`**")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    listed = [name for names in rows for name in re.findall(r"`(\w+)`", names)]
    assert sorted(listed) == sorted(name for (name, *_) in store.rows("DESCRIBE TABLE calls"))


VIEWS = ["inventory", "refusals", "frames", "gaps", "revocations", "acks", "epochs", "traces", "edges", "findings", "responses"]


@pytest.mark.parametrize("view", VIEWS)
def test_the_page_has_every_column_of_the_other_views(store: Store, view: str) -> None:
    start = PAGE.index(f"**`{view}`**")
    words = set(re.findall(r"`(\w+)`", PAGE[start:].partition("\n\n**`")[0].partition("\n\n## ")[0]))
    assert {name for (name, *_) in store.rows(f"DESCRIBE TABLE {view}")} - words <= {"missing"}


def test_the_page_has_every_table(store: Store) -> None:
    section = PAGE[PAGE.index("## Tables") : PAGE.index("Migrations run at start")]
    listed = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    found = [name for (name,) in store.rows("SELECT name FROM system.tables WHERE database = 'wardline' AND engine != 'View'")]
    assert sorted(listed) == sorted(found)


def test_the_page_has_the_limits_of_the_program() -> None:
    assert (engine.WAITING_MAX, front.QUERY_BYTES_MAX, memory.BODY_BYTES_MAX) == (64, 1 << 20, 1 << 30)
    assert (sessions.TIMEOUT_S, sessions.TIMEOUT_MAX_S) == (60, 3600)
    assert (sessions.SESSIONS_MAX, sessions.SESSION_STATEMENTS_MAX) == (1000, 100)
