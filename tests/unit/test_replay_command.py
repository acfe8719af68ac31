"""What `wardline replay` reads from its command line, what it shows, and which name its host gets."""

import argparse
import io
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import replayview
from pipeline.cli.replay import doors, rate
from pipeline.cli.replayhost import ReplayHost
from pipeline.cli.replayview import LINE_S, SAME_LINE_S, Counts, View
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import Lock


@pytest.mark.parametrize(("text", "value"), [("1", 1.0), ("0.5", 0.5), ("200000", 200_000.0)])
def test_a_rate_is_calls_a_second(text: str, value: float) -> None:
    assert rate(text) == value


@pytest.mark.parametrize("text", ["0", "0.0", "-1", "1e3", "nan", "inf", "", "fast", "1.", "٣"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a number of calls a second$"):
        rate(text)


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("4", 4), ("64", 64)])
def test_doors_are_a_number_of_processes(text: str, value: int) -> None:
    assert doors(text) == value


@pytest.mark.parametrize("text", ["0", "65", "-1", "1.0", "", "four", "٣"])
def test_what_is_no_number_of_doors_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a number from 1 to 64$"):
        doors(text)


def test_the_summary_counts_this_run_and_names_what_was_done_before() -> None:
    counts = Counts(lines=5000, before=1000, stored_s=0.456)
    one = {"allowed": 1800, "records": 4200, "reasons": {"forbid": 600}, "begun": 100.0, "ended": 101.5}
    two = {"allowed": 1200, "records": 2800, "reasons": {"no-permit": 300, "forbid": 100}, "begun": 100.5, "ended": 102.0}
    counts.add_up([{}, one, two])
    assert counts.summary() == [
        "calls                              4,000",
        "allowed                            3,000",
        "refused by policy                  1,000",
        "done before                        1,000",
        "rate                       2,000 calls/s",
        "all stored after                  0.46 s",
    ]
    assert (counts.calls, counts.done, counts.records) == (4000, 5000, 7000)


def test_the_summary_tells_why_calls_were_refused() -> None:
    reasons = Counter({"chain": 3, "identity": 1, "forbid": 2, "no-permit": 3, "revoked": 7, "paused": 6, "overloaded": 5})
    counts = Counts(lines=30, doors=4, allowed=1, reasons=reasons, calling_s=1.0)
    said = {line[:24].strip(): line[24:].strip() for line in counts.summary()}
    assert list(said.items())[:-2] == [
        ("doors", "4"), ("calls", "28"), ("allowed", "1"), ("refused by policy", "5"), ("refused as revoked", "7"),
        ("refused while paused", "6"), ("refused for their chain", "4"), ("refused as overloaded", "5"),
    ]  # fmt: skip


def test_a_run_that_called_nothing_has_no_rate() -> None:
    assert not any(line.startswith("rate") for line in Counts(lines=10, before=10).summary())


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(replayview, "time", made)
    return made


def test_without_a_terminal_there_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    counts = Counts(lines=9000)
    with View(counts) as view:
        view.update()
        clock.now += LINE_S
        counts.allowed, counts.records, counts.stored = 1234, 2468, 2000
        view.update()
        view.update()
        clock.now += LINE_S
        view.status("waiting: no room")
        view.update()
        view.tell("host replay-1 was killed")
        clock.now += LINE_S
        view.update()
        clock.now += SAME_LINE_S - LINE_S
        view.update()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "wardline: 1,234 of 9,000 lines called, 2,000 of 2,468 records stored",
        "wardline: 1,234 of 9,000 lines called, 2,000 of 2,468 records stored; waiting: no room",
        "wardline: host replay-1 was killed",
        "wardline: 1,234 of 9,000 lines called, 2,000 of 2,468 records stored; waiting: no room",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    counts = Counts(lines=4000, allowed=4000, records=8000, stored=8000)
    with View(counts) as view:
        view.status("[waiting] for room")
        view.tell("[odd] words stay as they are")
    shown = terminal.getvalue()
    assert "4000/4000" in shown
    assert "8000/8000" in shown
    assert "[odd] words stay as they are" in shown
    assert "[waiting] for room" in shown


def host(home: Home, preferred: str = "", **args: Any) -> ReplayHost:
    home.replay.mkdir(parents=True, exist_ok=True)
    return ReplayHost(home, argparse.Namespace(kafka=None, **args), lambda _: None, preferred)


def test_a_host_gets_the_first_free_name(tmp_path: Path) -> None:
    home = Home(tmp_path)
    one = host(home)
    lock = Lock(home.run / "replay-2.lock")
    assert lock.take()
    three = host(home)
    assert (one.name, three.name) == ("replay-1", "replay-3")
    one.stop(lambda: False)
    assert host(home).name == "replay-1"
    lock.release()


def test_a_host_whose_door_is_to_be_adopted_is_preferred_even_while_its_last_process_leaves(tmp_path: Path) -> None:
    home = Home(tmp_path)
    lock = Lock(home.run / "replay-4.lock")
    assert lock.take()
    assert host(home, "replay-4").name == "replay-4"
    lock.release()


def test_a_preferred_name_that_another_replay_has_is_left_to_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    other = host(home, "replay-4")
    assert host(home, "replay-4").name == "replay-1"
    other.stop(lambda: True)


@pytest.mark.parametrize("preferred", ["enforce-1", "../x", "replay-x"])
def test_a_name_that_is_no_replays_is_never_taken(tmp_path: Path, preferred: str) -> None:
    assert host(Home(tmp_path), preferred).name == "replay-1"


def test_a_name_that_stays_held_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    lock = Lock(home.run / "replay-1.lock")
    assert lock.take()
    waiting = host(home, "replay-1")
    waiting.tick()
    monkeypatch.setattr("pipeline.cli.replayhost.HELD_S", 0.0)
    with pytest.raises(OperatorFault, match=r"^host replay-1 is held by process \d+$"):
        waiting.tick()
    lock.release()
