"""`wardline calls` on records that were planted: what is asked for, and what `--follow` makes of whatever comes in late."""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.cli import calls
from pipeline.cli.asking import Asker
from pipeline.cli.main import build_parser, main
from schemas.records import Kind, Outcome, Verdict
from schemas.store import FLAG_DEAD
from tests.support.store import NOW_S, Row, Store, decision, effect, frame_of, whole_decision

DENIED = {"verdict": int(Verdict.DENY), "outcome": int(Outcome.REFUSED), "reason": "no-permit"}
CUT = {"verdict": int(Verdict.DENY), "outcome": int(Outcome.REFUSED), "reason": "revoked", "status": 0}


def ids(*seqs: int, boot: int = 5) -> list[str]:
    return [f"{boot:016x}{seq:016x}" for seq in seqs]


Asked = Callable[..., list[str]]


@pytest.fixture
def asked(store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The ids of the calls that a command prints."""
    monkeypatch.delenv("WARDLINE_PARENT", raising=False)

    def run(*words: str) -> list[str]:
        capsys.readouterr()
        mask = os.umask(0o077)
        try:
            assert main(["calls", "--home", str(store.home.root), "--json", *words]) == 0, capsys.readouterr()
        finally:
            os.umask(mask)
        return [json.loads(line)["call_id"] for line in capsys.readouterr().out.splitlines()]

    return run


def test_what_is_asked_for_is_what_is_shown(store: Store, asked: Asked) -> None:
    now_us = int(time.time()) * 10**6
    host = {"resource": 'Host::"api.example.org:443"', "host": "api.example.org", "domain": "example.org"}
    store.insert(frame_of([
        decision(1, time=now_us - 7200 * 10**6, agent="coder"),
        decision(2, time=now_us - 3, session="it's \\ one"),
        decision(3, time=now_us - 2, **host),
        decision(4, time=now_us - 1, **DENIED),
        decision(5, time=now_us - 4, **host),
        effect(6, 5, **CUT),
        decision(7, time=now_us - 5, resource='Tool::"banker/send"'),
    ], frame_no=1))  # fmt: skip
    assert asked() == ids(1, 7, 5, 2, 3, 4), "the newest are the last lines"
    assert asked("--limit", "2") == ids(3, 4)
    assert asked("--since", "1h") == ids(7, 5, 2, 3, 4)
    assert asked("--since", "2020-01-01T00:00:00Z", "--limit", "1") == ids(4)
    assert asked("--denied") == ids(5, 4), "before it went out, and after"
    assert asked("--agent", "coder") == ids(1)
    assert asked("--agent", "cod") == []
    assert asked("--session", "it's \\ one") == ids(2)
    for name in ("api.example.org:443", "API.example.org", "example.org"):
        assert asked("--destination", name) == ids(5, 3), name
    for name in ("bank/send", "bank"):
        assert asked("--destination", name) == ids(1, 2, 4), name
    assert asked("--destination", "ban") == asked("--destination", "pi.example.org") == []
    assert asked("--destination", "example.org", "--denied") == ids(5)


def test_the_table_has_a_line_for_each_call(store: Store) -> None:
    assert store.wardline.run("calls").stdout == "no call is stored that fits\n"
    store.insert(frame_of([decision(1), effect(2, 1)], frame_no=1))
    head, line = store.wardline.run("calls").stdout.splitlines()
    assert head.split() == list(calls.HEAD)
    said = ["allow", "planner", "mcp:tools/call", "bank/send", "ok", "200", "10", "B", "20", "B", "1.5", "ms"]
    assert line.split()[2:] == [*said, *ids(1)]


def test_more_calls_than_one_question_names_are_all_found(store: Store, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "KEYS_MAX", 7)
    store.insert(frame_of([decision(seq, boot=boot) for boot in (5, 6) for seq in range(1, 11)], frame_no=1))
    assert sorted(asked()) == sorted([*ids(*range(1, 11)), *ids(*range(1, 11), boot=6)])


# -- follow, a step at a time --------------------------------------------------------------------------------------------


def short(row: dict[str, Any]) -> str:
    return f"{row['call_id'][-2:]} {row['outcome']}".strip()


class Steps:
    """`--follow`, whose looks a test makes one by one."""

    def __init__(self, store: Store, capsys: pytest.CaptureFixture[str], *words: str) -> None:
        args: argparse.Namespace = build_parser().parse_args(["calls", *words])
        self.asker = Asker(store.home, store.config)
        self._capsys = capsys
        self._follow = calls.Follow(self.asker, calls.Wanted(args), short)
        self._follow._arrivals.begin(self.asker)

    def __call__(self) -> list[str]:
        """What is printed until nothing more is new."""
        self._capsys.readouterr()
        while self._follow._step():
            pass
        return self._capsys.readouterr().out.splitlines()


@pytest.fixture
def steps(store: Store, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Steps]]:
    made: list[Steps] = []

    def begin(*words: str) -> Steps:
        made.append(Steps(store, capsys, *words))
        return made[-1]

    yield begin
    for one in made:
        one.asker.close()


def test_what_was_there_before_is_not_new_and_its_end_is(store: Store, steps: Callable[..., Steps]) -> None:
    store.insert(frame_of([decision(1), decision(2)], frame_no=1))
    look = steps()
    assert look() == []
    store.insert(frame_of([effect(3, 1)], frame_no=2))
    assert look() == ["01 ok"]


def test_what_comes_late_with_old_times_and_numbers_is_not_missed(store: Store, steps: Callable[..., Steps]) -> None:
    """A host that was cut off, an insert that waited for the store, a lane whose first frames come last, another day."""
    look = steps()
    store.insert(frame_of([decision(9)], frame_no=9))
    assert look() == ["09"]
    for number, days in ((3, 0), (8, 1), (1, 40)):
        old = {"time": NOW_S * 10**6 - days * 86_400 * 10**6, "recorded": NOW_S * 10**6 - days * 86_400 * 10**6}
        store.insert(frame_of([decision(number, **old)], frame_no=number, ingested_s=NOW_S - days * 86_400))
        assert look() == [f"{number:02x}"]
    store.insert(frame_of([decision(2)], frame_no=2, partition=3, boot=1, enforcer="it's \\ another"))
    assert look() == ["02"]
    assert look() == []


def test_an_end_that_comes_before_its_decision_is_told_with_it(store: Store, steps: Callable[..., Steps]) -> None:
    look = steps()
    store.insert(frame_of([effect(2, 1)], frame_no=2))
    assert look() == []
    store.insert(frame_of([decision(1)], frame_no=1))
    assert look() == ["01 ok"]


def test_a_call_that_comes_whole_is_one_line(store: Store, steps: Callable[..., Steps]) -> None:
    follow = steps()
    store.insert(frame_of([decision(1), whole_decision(2)], frame_no=1))
    assert follow() == ["01", "02 ok"]
    store.insert(frame_of([effect(3, 1)], frame_no=2))
    assert follow() == ["01 ok"]


def test_progress_is_no_news_and_a_cut_is(store: Store, steps: Callable[..., Steps]) -> None:
    look = steps("--denied")
    store.insert(frame_of([decision(1)], frame_no=1))
    store.insert(frame_of([effect(2, 1, kind=int(Kind.PROGRESS), outcome=0, bytes_out=5)], frame_no=2))
    assert look() == [], "it was allowed"
    store.insert(frame_of([effect(3, 1, **CUT)], frame_no=3))
    assert look() == ["01 refused"]


def test_a_dead_letter_that_is_retried_is_told_when_its_records_come(store: Store, steps: Callable[..., Steps]) -> None:
    look = steps()
    store.insert(frame_of([], frame_no=1, ranges=[5, 1, 1], flag=FLAG_DEAD))
    assert look() == []
    store.insert(frame_of([decision(1)], frame_no=1))
    assert look() == ["01"]


def test_many_frames_at_once_are_all_told_once(store: Store, steps: Callable[..., Steps]) -> None:
    look = steps()
    rows: list[Row] = []
    for number in range(1, 101):
        rows += frame_of([decision(number)], frame_no=number, partition=number % 3, boot=number % 7, previous=bytes(32))
    store.insert(rows)
    assert sorted(look()) == [f"{number:02x}" for number in range(1, 101)]
    assert look() == []


def test_calls_of_two_doors_with_the_same_numbers_are_not_mixed(store: Store, steps: Callable[..., Steps]) -> None:
    store.insert(frame_of([decision(1, boot=6), decision(2, boot=5)], frame_no=1))
    look = steps()
    store.insert(frame_of([effect(3, 1, boot=6), effect(3, 2, boot=5), decision(2, boot=6), decision(4, boot=5)], frame_no=2))
    assert sorted(look()) == ["01 ok", "02", "02 ok", "04"]


def test_what_was_told_is_forgotten_only_beyond_a_limit(
    store: Store, steps: Callable[..., Steps], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "STATES_MAX", 2)
    look = steps()
    store.insert(frame_of([decision(1), decision(2), decision(3)], frame_no=1))
    assert look() == ["01", "02", "03"]
    assert len(look._follow._said) == 2
