"""What commands, and a worker that starts, make of calls that came whole, on records that were planted in a real store."""

import json
import os
import re
import time
from collections.abc import Callable

import pytest

from pipeline.cli import top
from pipeline.cli.asking import Asker
from pipeline.cli.main import main
from schemas.past import LOOKED_AT, open_sql
from schemas.records import Kind, Outcome, Verdict, call_id
from tests.support.store import NOW_S, Store, decision, effect, frame_of, whole_decision

BOTH = {"address": "10.1.2.3\x1f192.0.2.1:443"}
REFUSED = {"verdict": int(Verdict.DENY), "outcome": int(Outcome.REFUSED), "reason": "no-permit"}
PROGRESS = {"kind": int(Kind.PROGRESS), "outcome": int(Outcome.OPEN), "status": 0}

Told = Callable[..., str]


@pytest.fixture
def told(store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Told:
    """What a command prints."""
    monkeypatch.delenv("WARDLINE_PARENT", raising=False)

    def run(*words: str) -> str:
        capsys.readouterr()
        mask = os.umask(0o077)
        try:
            assert main([words[0], "--home", str(store.home.root), *words[1:]]) == 0, capsys.readouterr()
        finally:
            os.umask(mask)
        return capsys.readouterr().out

    return run


def test_calls_has_a_line_with_its_end(store: Store, told: Told) -> None:
    store.insert(frame_of([whole_decision(1, **BOTH)], frame_no=1))
    _, line = told("calls").splitlines()
    said = ["allow", "planner", "mcp:tools/call", "bank/send", "ok", "200", "10", "B", "20", "B", "1.5", "ms"]
    assert line.split()[2:] == [*said, call_id(5, 1)]
    row = json.loads(told("calls", "--json"))
    assert (row["client"], row["address"], row["outcome"]) == ("10.1.2.3", "192.0.2.1:443", "ok")


def test_explain_says_when_it_ended_what_was_dialled_and_that_one_record_says_it(store: Store, told: Told) -> None:
    store.insert(frame_of([whole_decision(1, **BOTH), decision(2, address="10.1.2.3"), effect(3, 2, address="192.0.2.1:443")],
                          frame_no=1))  # fmt: skip
    text = told("explain", call_id(5, 1))
    for line in (
        rf"when        (\S+ \S+) UTC, recorded \S+ \S+, ended {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(NOW_S))}\.001",
        r"verdict     ALLOWED", r"ended       it was done, status 200", r"dialled     192\.0\.2\.1:443",
        r"bytes       10 B out, 20 B in", r"took        1\.5 ms",
    ):  # fmt: skip
        assert re.search(f"^{line}", text, re.MULTILINE), f"{line}\n{text}"
    (only,) = json.loads(told("explain", "--json", call_id(5, 1)))["records"]
    two = json.loads(told("explain", "--json", call_id(5, 2)))["records"]
    shown = "kind", "outcome", "client", "address"
    assert tuple(only[name] for name in shown) == ("decision", "ok", "10.1.2.3", "192.0.2.1:443")
    assert [tuple(one[name] for name in shown) for one in two] == [
        ("decision", "open", "10.1.2.3", ""), ("effect", "ok", "", "192.0.2.1:443"),
    ]  # fmt: skip
    assert [one["ended"] is not None for one in (only, *two)] == [True, False, True]


def test_top_counts_them_and_none_as_open(store: Store) -> None:
    store.insert(frame_of([
        whole_decision(1), whole_decision(2, bytes_out=90), decision(3), decision(4), effect(5, 4), decision(6, **REFUSED),
    ], frame_no=1, ingested_s=int(time.time())))  # fmt: skip
    asker = Asker(store.home, store.config)
    try:
        total = top.look(asker, store.home).total
    finally:
        asker.close()
    assert [total[name] for name in ("calls", "denied", "opened", "sent", "received")] == [5, 1, 1, 110, 60]


def test_a_worker_that_starts_takes_in_no_call_that_came_whole_as_open(store: Store) -> None:
    store.insert(frame_of([
        decision(1), whole_decision(2), decision(3), effect(4, 3), decision(5), effect(6, 5, **PROGRESS),
        decision(7, **REFUSED), decision(8), effect(9, 8, kind=int(Kind.LOST), outcome=int(Outcome.LOST)),
        whole_decision(10, outcome=int(Outcome.ERROR)),
    ], frame_no=1))  # fmt: skip
    rows = store.rows(open_sql(store.database, [0], NOW_S - 60, NOW_S + 60, 100), user="writer")
    assert [row[LOOKED_AT.index("seq")] for row in rows] == [1, 5, 6]
    one = store.rows(open_sql(store.database, [0], NOW_S - 60, NOW_S + 60, 1), user="writer")
    assert [row[LOOKED_AT.index("seq")] for row in one] in ([1], [5, 6]), "what is over takes no open call's place"
