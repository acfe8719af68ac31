"""How calls are asked for and shown, without a store: words and bounds, one line for a call, and what is new among frames."""

import argparse
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import calls
from pipeline.cli.arrivals import Arrivals, Arrived, calls_in, with_number
from pipeline.cli.asking import named, shown_span, shown_time
from pipeline.cli.common import shown_size, table
from pipeline.cli.main import build_parser, main

WHEN = datetime(2026, 1, 31, 12, 0, 0, 1_500, UTC)


def call(**fields: Any) -> dict[str, Any]:
    return {
        "call_id": f"{5:016x}{1:016x}", "boot": 5, "seq": 1, "time": WHEN, "recorded": WHEN, "ended": None, "agent": "planner",
        "verdict": "allow", "reason": "permit", "mode": "enforce", "action": "http:GET", "resource": 'Host::"a.example:443"',
        "path": "/x", "outcome": "", "status": 0, "bytes_out": 0, "bytes_in": 2048, "duration_ms": 0.0,
    } | fields  # fmt: skip


def wanted(*words: str) -> calls.Wanted:
    return calls.Wanted(build_parser().parse_args(["calls", *words]))


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1.5", "100001", "²"])
def test_a_limit_has_bounds(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number from 1 to 100000"):
        calls.limit(text)
    assert calls.limit("100000") == 100_000


def test_since_is_a_span_back_or_a_time() -> None:
    assert abs(calls.since("1h") - (time.time() - 3600)) < 5
    assert calls.since("2026-01-31T12:00:00Z") == 1769860800
    with pytest.raises(argparse.ArgumentTypeError, match="`yesterday` is neither a span such as 90s"):
        calls.since("yesterday")


def test_what_the_user_writes_is_never_part_of_the_query() -> None:
    evil = "x' OR 1 = 1 --"
    asked = wanted("--agent", evil, "--session", evil, "--destination", evil, "--denied")
    assert evil not in asked.where
    assert asked.parameters["agent"] == asked.parameters["session"] == evil
    assert asked.where.endswith("AND verdict = 'deny'")
    assert wanted().where == "1"


def test_a_destination_is_spelled_as_a_revocation_would_be() -> None:
    asked = wanted("--destination", "API.Example.:443").parameters
    assert (asked["place"], asked["as_host"]) == ("api.example:443", 'Host::"api.example:443"')
    asked = wanted("--destination", "bank/send").parameters
    assert (asked["as_tool"], asked["as_server"]) == ('Tool::"bank/send"', 'Tool::"bank/send/')


@pytest.mark.parametrize(("fields", "verdict", "ended"), [
    ({}, "allow", "open"),
    ({"outcome": "ok", "status": 200}, "allow", "ok 200"),
    ({"outcome": "lost"}, "allow", "lost"),
    ({"verdict": "deny", "reason": "no-permit", "outcome": "refused"}, "deny no-permit", "refused"),
    ({"verdict": "deny", "reason": "forbid", "mode": "shadow", "outcome": "ok"}, "deny forbid (shadow)", "ok"),
])  # fmt: skip
def test_a_line_says_what_became_of_a_call(fields: dict[str, Any], verdict: str, ended: str) -> None:
    cells = calls.cells(call(**fields))
    assert (cells[1], cells[5]) == (verdict, ended)
    assert cells[0] == "2026-01-31 12:00:00.001"
    assert cells[4] == "a.example:443/x"


def test_nothing_that_was_recorded_writes_to_the_terminal() -> None:
    evil = dict.fromkeys(("agent", "action", "path", "reason", "outcome"), "\x1b]0;owned\x07\r\n") | {"verdict": "deny"}
    for text in (calls.line_of(call(**evil)), table(calls.HEAD, [calls.cells(call(**evil))]).partition("\n")[2]):
        assert text.isprintable()
        assert "\\x1b]0;owned\\x07\\x0d\\x0a" in text


def test_a_line_of_json_has_every_column_and_no_line_break() -> None:
    line = calls.line_as_json(call(path="/\n\x1b", ended=WHEN))
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["ended"] == "2026-01-31T12:00:00.001500Z"


def test_sizes_times_and_names_are_for_people() -> None:
    assert [shown_size(n) for n in (0, 1023, 1024, 5 << 20, 3 << 40, 5000 << 40)] == [
        "0 B", "1023 B", "1.0 KiB", "5.0 MiB", "3.0 TiB", "5000.0 TiB",
    ]  # fmt: skip
    assert [shown_span(ms) for ms in (0, 1.26, 1_000, 61_000, 3_720_000)] == [
        "0.0 ms", "1.3 ms", "1.0 s", "1 min 1 s", "1 h 2 min",
    ]  # fmt: skip
    assert shown_time(None) == "-"
    assert named('Tool::"a/\\"b"') == 'a/"b'
    assert named("no uid") == "no uid"


ERRORS = {
    "no call to explain": ["explain"],
    "a call id that is none": ["explain", "call-1"],
    "too little of a call id": ["explain", "1234567"],
    "a limit of nothing": ["calls", "--limit", "0"],
    "a time that is none": ["calls", "--since", "yesterday"],
    "an empty destination": ["calls", "--destination", ""],
    "a destination with a control character": ["calls", "--destination", "a\x1bb"],
    "a kind that is not kept": ["inventory", "--kind", "weather"],
    "an interval of nothing": ["top", "--interval", "0"],
    "no store to list": ["calls"],
    "no store to follow": ["calls", "--follow"],
    "no store to explain": ["explain", "12345678"],
    "no store for an inventory": ["inventory", "--json"],
    "no store for top": ["top", "--once"],
}


@pytest.mark.parametrize("words", ERRORS.values(), ids=ERRORS)
def test_an_error_is_one_line_and_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WARDLINE_PARENT", raising=False)
    mask = os.umask(0o077)
    try:
        code = main([words[0], "--home", str(tmp_path), *words[1:]])
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        os.umask(mask)
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.startswith("wardline: ")
    assert said.err.count("\n") == 1
    assert "\x1b" not in said.err


# -- what is new ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("known", "number", "found"), [
    ([], 3, [(3, 3)]),
    ([(1, 2)], 3, [(1, 3)]),
    ([(1, 2), (4, 5)], 3, [(1, 5)]),
    ([(1, 2), (7, 9)], 5, [(1, 2), (5, 5), (7, 9)]),
    ([(3, 4)], 1, [(1, 1), (3, 4)]),
    ([(3, 4)], 3, [(3, 4)]),
])  # fmt: skip
def test_known_numbers_are_kept_as_spans(known: list[tuple[int, int]], number: int, found: list[tuple[int, int]]) -> None:
    assert with_number(known, number) == found


class Answers:
    """A store that answers what it is told to, and remembers what it was asked."""

    def __init__(self, *answers: list[dict[str, Any]]) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)

    def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        self.asked.append(sql)
        return self._answers.pop(0)


def lane(**fields: Any) -> dict[str, Any]:
    return {"lane_host": "enforce-1", "lane_boot": 7, "lane_part": 0, **fields}


def test_a_frame_that_failed_to_be_told_is_looked_at_again() -> None:
    summary, frame = [lane(frames=1, top=1)], [lane(seq=1, came=9, boots=[5])]
    store: Any = Answers([], summary, frame, summary, frame, summary)
    arrivals = Arrivals()
    arrivals.begin(store)
    assert arrivals.look(store) == arrivals.look(store) == [Arrived(("enforce-1", 7, 0), 1, 9, (5,))]
    arrivals.done([Arrived(("enforce-1", 7, 0), 1, 9, (5,))])
    assert arrivals.look(store) == [], "its lane has not changed, so it is not even asked for"
    assert len(store.asked) == 6


def test_a_lane_that_was_not_looked_at_to_its_end_is_asked_for_again() -> None:
    frames = [lane(seq=n, came=9, boots=[5]) for n in range(1, 21)]
    summary = [lane(frames=21, top=21)]
    store: Any = Answers([], summary, frames, summary, [lane(seq=21, came=9, boots=[5])])
    arrivals = Arrivals()
    arrivals.begin(store)
    arrivals.done(arrivals.look(store))
    assert [frame.number for frame in arrivals.look(store)] == [21]
    assert "AND NOT seq BETWEEN 1 AND 20" in store.asked[-1]


def test_frames_without_records_name_no_call() -> None:
    store: Any = Answers()
    assert calls_in(store, []) == calls_in(store, [Arrived(("enforce-1", 7, 0), 1, 9, ())]) == set()
