"""The board between processes: readers race with the writer, and the writer is stopped or killed in mid-change."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.records import Standing
from tests.support.boards import (
    NOBODY,
    board,
    child,
    finish,
    of,
    reader,
    revoke,
    sequence,
    soon,
    state,
    wait_for,
)  # fmt: skip

READERS = 3


def race(folder: Path, what: str, until: int) -> list["subprocess.Popen[str]"]:
    """Readers that have begun."""
    readers = [child(what, folder, until) for _ in range(READERS)]
    for one in readers:
        wait_for(folder / f"ready-{one.pid}")
    return readers


def test_no_reader_ever_sees_half_of_a_change(tmp_path: Path) -> None:
    """In place, in a new table, in a larger one: what a look shows is of one state."""
    states, writer = 20_000, board(tmp_path, 256)
    filler = [f"token:{number}" for number in range(3_000)]
    texts, epoch, policy = state(0)
    writer.replace([(text, 0) for text in texts], epoch=epoch, paused=False, policy=policy)
    readers = race(tmp_path, "halves", states)
    try:
        for number in range(1, states + 1):
            texts, epoch, policy = state(number)
            before = state(number - 1)[0]
            if number % 100 == 7:
                writer.replace([(text, 0) for text in texts], epoch=epoch, paused=False, policy=policy)
                continue
            more = filler if number % 1_000 == 500 else filler[: number % 5]
            writer.change([(text, 0) for text in (*more, *texts)], before, epoch=epoch, paused=False, policy=policy)
        assert [finish(one) for one in readers] == ["agreed"] * READERS
    finally:
        for one in readers:
            one.kill()


def test_what_a_stale_board_names_is_of_one_state_too(tmp_path: Path) -> None:
    states, writer = 20_000, board(tmp_path)
    writer.fresh(0)
    _, epoch, policy = state(0)
    writer.replace((), epoch=epoch, paused=False, policy=policy)
    readers = race(tmp_path, "stale", states)
    try:
        for number in range(1, states + 1):
            _, epoch, policy = state(number)
            writer.change((), (), epoch=epoch, paused=False, policy=policy)
            if number % 200 == 0:
                time.sleep(0.001)
        assert [finish(one) for one in readers] == ["agreed"] * READERS
    finally:
        for one in readers:
            one.kill()


def test_the_table_grows_under_its_readers(tmp_path: Path) -> None:
    entries, writer = 20_000, board(tmp_path)
    writer.replace((), epoch=0, paused=False, policy=b"")
    size = writer.bytes
    readers = race(tmp_path, "growth", entries)
    try:
        for number in range(1, entries + 1):
            revoke(writer, f"agent:{number}", epoch=number)
            if number % 50 == 0:
                time.sleep(0.001)  # or it is over before the readers have a turn
        assert writer.bytes > 100 * size
        assert [finish(one) for one in readers] == ["followed"] * READERS
    finally:
        for one in readers:
            one.kill()


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A writer that stands still in mid-change."""
    writing = child("churn", tmp_path, 900)
    try:
        assert writing.stdout is not None
        assert writing.stdout.readline() == "writes\n"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            writing.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, writing.pid, os.WSTOPPED | os.WNOWAIT)
            if sequence(tmp_path) % 2:
                break
            writing.send_signal(signal.SIGCONT)
            time.sleep(0.0005)
        assert sequence(tmp_path) % 2 == 1
        yield writing
    finally:
        writing.kill()
        writing.communicate()


def test_a_writer_that_stands_still_in_mid_change_is_not_believed_until_it_goes_on(
    tmp_path: Path, stopped: "subprocess.Popen[str]"
) -> None:
    door, who = reader(tmp_path), of("agent:nobody")
    begun = time.monotonic()
    assert door.check(who, NOBODY) == Standing.STALE
    assert 0.09 < time.monotonic() - begun < 2
    begun = time.monotonic()
    for _ in range(100):
        assert door.check(who, NOBODY) == Standing.STALE
        assert not door.unchanged()
    assert time.monotonic() - begun < 0.5, "it waits once for a change, and not in every check"
    stopped.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 10
    while door.check(who, NOBODY) != Standing.GO:
        assert time.monotonic() < deadline


def test_a_writer_killed_in_mid_change_leaves_its_readers_stale_until_there_is_another(
    tmp_path: Path, stopped: "subprocess.Popen[str]"
) -> None:
    door, who = reader(tmp_path), of("agent:a")
    stopped.send_signal(signal.SIGKILL)
    stopped.wait()
    assert sequence(tmp_path) % 2 == 1
    assert door.check(who, NOBODY) == reader(tmp_path).check(who, NOBODY) == Standing.STALE
    time.sleep(0.1)
    assert door.check(who, NOBODY) == Standing.STALE
    again = board(tmp_path)
    revoke(again, "agent:b", epoch=77)
    deadline = time.monotonic() + 0.5
    while door.check(who, NOBODY) == Standing.STALE:
        assert time.monotonic() < deadline, "it looks for another board at least every 50 ms"
    assert (door.check(who, NOBODY), door.epoch) == (Standing.GO, 77)
    assert door.check(of("agent:b"), NOBODY) == Standing.REVOKED
    assert len(list(tmp_path.glob("board*"))) == 2, "what the dead one left is gone"


def test_readers_of_a_writer_that_was_killed_between_two_changes_go_to_the_next_at_once(tmp_path: Path) -> None:
    writing = child("churn", tmp_path, 1)
    try:
        assert writing.stdout is not None
        assert writing.stdout.readline() == "writes\n"
        door, who = reader(tmp_path), of("agent:nobody")
        assert door.check(who, NOBODY) == Standing.GO
    finally:
        writing.kill()
        writing.communicate()
    again = board(tmp_path)
    revoke(again, "agent:nobody", epoch=78)
    again.fresh(soon())
    time.sleep(0.06)
    assert (door.check(who, NOBODY), door.epoch) == (Standing.REVOKED, 78)


def test_no_word_of_a_door_is_ever_torn(tmp_path: Path) -> None:
    words = 200_000
    hearing = child("hear", tmp_path, words)
    wait_for(tmp_path / f"ready-{hearing.pid}")
    try:
        assert finish(child("say", tmp_path, words)) == "said"
        said, many = finish(hearing).split()
    finally:
        hearing.kill()
    assert said == "heard"
    assert int(many) > 10
