"""Where the board cannot be believed: nobody, no room, files that are no board's, or not one of this start of the machine."""

import errno
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ext.board import BoardReader, BoardWriter, SeenReader, SeenWriter, Selectors
from schemas.errors import AgentFault, PeerFault
from schemas.records import Standing
from tests.support.boards import AT_START, BOOT, NOBODY, board, lift, of, reader, revoke, soon

LOOK_S = 0.06
"""After this a stale reader has looked for another board."""


def test_where_there_is_no_board_nothing_goes(tmp_path: Path) -> None:
    door = reader(tmp_path / "not there")
    assert door.check(NOBODY, NOBODY) == Standing.STALE
    assert (door.unchanged(), door.generation, door.epoch, door.policy) == (False, 0, 0, b"")


def test_a_reader_that_came_first_finds_the_board(tmp_path: Path) -> None:
    door = reader(tmp_path)
    assert door.check(NOBODY, NOBODY) == Standing.STALE
    writer = board(tmp_path)
    time.sleep(LOOK_S)
    assert door.check(NOBODY, NOBODY) == Standing.GO
    assert door.generation == writer.generation == 1


def test_a_new_board_is_stale_until_its_writer_says_how_long_it_may_be_believed(tmp_path: Path) -> None:
    writer = BoardWriter(str(tmp_path / "board"), BOOT)
    door = reader(tmp_path)
    assert door.check(NOBODY, NOBODY) == Standing.STALE
    writer.replace([("agent:a", 0)], epoch=4, paused=False, policy=b"p" * 32)
    assert door.check(NOBODY, NOBODY) == Standing.STALE
    assert (door.epoch, door.policy) == (4, b"p" * 32)
    writer.fresh(soon())
    assert door.check(NOBODY, NOBODY) == Standing.GO
    assert (writer.boot, writer.generation, writer.entries) == (BOOT, 1, 1)


def test_it_is_stale_when_its_time_is_over(tmp_path: Path) -> None:
    writer, door = board(tmp_path), reader(tmp_path)
    until = time.monotonic_ns() + 50_000_000
    writer.fresh(until)
    last_ns = time.monotonic_ns()
    while True:
        now_ns = time.monotonic_ns()
        if door.check(NOBODY, NOBODY) != Standing.GO:
            break
        last_ns = now_ns
    assert time.monotonic_ns() >= until, "it is never stale too early"
    assert last_ns < until + 50_000_000, "the coarse clock is some ticks behind, and no more"
    assert not door.unchanged()
    writer.fresh(soon())
    assert door.check(NOBODY, NOBODY) == Standing.GO


def test_a_time_that_lies_too_far_ahead_is_no_freshness(tmp_path: Path) -> None:
    """After a start of the machine its clock begins at 0 again: what an old file says would hold for days."""
    writer, door = board(tmp_path), reader(tmp_path)
    with pytest.raises(ValueError, match="is more than 60000000000 ns ahead"):
        writer.fresh(time.monotonic_ns() + 62_000_000_000)
    with open(tmp_path / "board", "r+b") as file:
        file.seek(72)
        file.write(struct.pack("<Q", time.monotonic_ns() + 62_000_000_000))
    assert door.check(NOBODY, NOBODY) == Standing.STALE


def test_a_board_from_before_the_machine_was_started_is_none(tmp_path: Path) -> None:
    writer = board(tmp_path)
    with open(tmp_path / "board", "r+b") as file:
        file.seek(AT_START)
        file.write(struct.pack("<Q", 1))
    assert reader(tmp_path).check(NOBODY, NOBODY) == Standing.STALE
    assert writer.generation == 1


DAMAGE: dict[str, Callable[[Path], object]] = {
    "another magic": lambda folder: write(folder / "board", 0, b"WLBOARD2"),
    "too short": lambda folder: os.truncate(folder / "board", 4_095),
    "no file but a folder": lambda folder: ((folder / "board").unlink(), (folder / "board").mkdir()),
    "no table": lambda folder: table(folder).unlink(),
    "a table that is too short": lambda folder: os.truncate(table(folder), 4_096 + 24 * 63),
    "a table of another form": lambda folder: write(table(folder), 0, b"WLTABLE2"),
    "another board's table": lambda folder: write(table(folder), 16, bytes(16)),
    "a table with another number": lambda folder: write(table(folder), 32, struct.pack("<Q", 9)),
    "a table with no slot": lambda folder: write(table(folder), 8, struct.pack("<Q", 0)),
    "a table whose slots would wrap": lambda folder: write(table(folder), 8, struct.pack("<Q", 1 << 63)),
    "slots that are no power of two": lambda folder: write(table(folder), 8, struct.pack("<Q", 63)),
}


def write(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def table(folder: Path) -> Path:
    (found,) = folder.glob("board.table*")
    return found


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_what_is_no_sound_board_is_stale_and_another_one_is_found(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    writer = board(tmp_path)
    assert reader(tmp_path).check(NOBODY, NOBODY) == Standing.GO
    damage(tmp_path)
    door = reader(tmp_path)
    assert door.check(of("agent:a"), NOBODY) == Standing.STALE
    writer.close()
    if (tmp_path / "board").is_dir():
        (tmp_path / "board").rmdir()
    revoke(board(tmp_path), "agent:a")
    time.sleep(LOOK_S)
    assert door.check(of("agent:a"), NOBODY) == Standing.REVOKED


def test_another_writer_takes_the_readers_of_the_one_before(tmp_path: Path) -> None:
    before, door, who = board(tmp_path), reader(tmp_path), of("agent:a")
    assert door.check(who, NOBODY) == Standing.GO
    revoke(before, *(f"agent:{number}" for number in range(500)))
    (tmp_path / "board.table77").touch()
    after = BoardWriter(str(tmp_path / "board"), BOOT + 1)
    assert [path.name for path in tmp_path.iterdir() if ".table" in path.name] == ["board.table1"]
    assert not door.unchanged(), "the board before is stale at once"
    time.sleep(LOOK_S)
    assert door.check(who, NOBODY) == Standing.STALE
    after.replace([("agent:a", 0)], epoch=9, paused=False, policy=b"")
    after.fresh(soon())
    assert (door.check(who, NOBODY), door.epoch, door.generation) == (Standing.REVOKED, 9, 1)


def test_a_closed_board_is_stale_and_takes_nothing(tmp_path: Path) -> None:
    writer, door = board(tmp_path), reader(tmp_path)
    writer.close()
    writer.close()
    assert door.check(NOBODY, NOBODY) == Standing.STALE
    assert writer.bytes == 0
    for use in (lambda: revoke(writer, "agent:a"), lambda: writer.fresh(0), lambda: writer.generation):
        with pytest.raises(ValueError, match="the board is closed"):
            use()


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fail)


def test_without_room_for_a_larger_table_the_board_is_stale_until_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, door = board(tmp_path), reader(tmp_path)
    many = [f"agent:{number}" for number in range(100)]
    with monkeypatch.context() as patch:
        no_room(patch)
        with pytest.raises(PeerFault, match=r"board\.table3` cannot be made for 256 slots: No space left on device"):
            revoke(writer, *many)
    assert door.check(of(many[0]), NOBODY) == Standing.STALE
    writer.fresh(soon())
    assert door.check(of(many[0]), NOBODY) == Standing.STALE, "it lacks a change"
    lift(writer, "agent:x")
    writer.fresh(soon())
    assert door.check(of(many[0]), NOBODY) == Standing.STALE
    writer.replace([(text, 0) for text in many], epoch=8, paused=False, policy=b"")
    assert door.check(of(many[0]), NOBODY) == Standing.STALE
    writer.fresh(soon())
    assert (door.check(of(many[0]), NOBODY), door.epoch) == (Standing.REVOKED, 8)
    assert (writer.entries, len(list(tmp_path.iterdir()))) == (100, 2)


@pytest.mark.parametrize(
    ("change", "fault", "match"),
    [
        ({"revoke": [("agent:\ud800", 0)]}, AgentFault, "no UTF-8"),
        ({"lift": ["agent:\ud800"]}, AgentFault, "no UTF-8"),
        ({"revoke": [("agent:a", -1)]}, OverflowError, "negative"),
        ({"revoke": ["agent:a"]}, ValueError, "unpack"),
        ({"revoke": [(b"agent:a", 0)]}, TypeError, "str"),
        ({"policy": b"short"}, ValueError, "a policy digest has 5 bytes, expected 32 or none"),
    ],
)
def test_a_change_that_cannot_be_made_leaves_the_board_stale(
    tmp_path: Path, change: dict[str, object], fault: type[Exception], match: str
) -> None:
    writer, door = board(tmp_path), reader(tmp_path)
    least = {"revoke": [("agent:b", 0)], "lift": (), "epoch": 5, "paused": False, "policy": b""}
    with pytest.raises(fault, match=match):
        writer.change(**{**least, **change})  # type: ignore[arg-type]
    writer.fresh(soon())
    assert door.check(NOBODY, NOBODY) == Standing.STALE
    assert (door.epoch, door.generation, writer.entries) == (1, 1, 0), "nothing of it was made"


def test_a_board_that_cannot_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PeerFault, match=r"not there/board` cannot be made: No such file or directory"):
        BoardWriter(str(tmp_path / "not there" / "board"), BOOT)
    no_room(monkeypatch)
    with pytest.raises(PeerFault, match="No space left on device"):
        BoardWriter(str(tmp_path / "board"), BOOT)
    with pytest.raises(PeerFault, match="seen` cannot be made: No space left on device"):
        SeenWriter(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_selectors_are_texts_that_have_utf8(tmp_path: Path) -> None:
    assert (of("agent:é", issued_s=9).texts, of("agent:é", issued_s=9).issued_s) == (("agent:é",), 9)
    with pytest.raises(AgentFault, match="no UTF-8"):
        of("agent:\ud800")
    with pytest.raises(TypeError):
        Selectors((b"agent:a",))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Selectors(["agent:a"])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        reader(tmp_path).check(None, NOBODY)  # type: ignore[arg-type]


def test_a_file_that_is_only_the_owners(tmp_path: Path) -> None:
    board(tmp_path)
    SeenWriter(str(tmp_path))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_door_has_said_nothing_before_its_first_word(tmp_path: Path) -> None:
    host = SeenReader(str(tmp_path))
    assert host.read() is None
    door = SeenWriter(str(tmp_path))
    assert host.read() is None
    door.write(7, b"p" * 32, 1_700_000_000_000_000_000)
    assert host.read() == SeenReader(str(tmp_path)).read() == (7, b"p" * 32, 1_700_000_000_000_000_000)
    door.write(8, b"", 0)
    assert host.read() == (8, b"", 0)
    with pytest.raises(ValueError, match="a policy digest has 31 bytes, expected 32 or none"):
        door.write(9, b"p" * 31, 0)
    assert host.read() == (8, b"", 0)


def test_a_word_that_was_cut_off_is_none(tmp_path: Path) -> None:
    door, host = SeenWriter(str(tmp_path)), SeenReader(str(tmp_path))
    door.write(7, b"", 1)
    write(tmp_path / "seen", 8, struct.pack("<Q", 3))
    assert host.read() is None
    write(tmp_path / "seen", 0, b"WLSEEN02")
    assert SeenReader(str(tmp_path)).read() is None


def test_a_reader_of_a_board_says_the_same_as_one_that_comes_later(tmp_path: Path) -> None:
    writer, early = board(tmp_path), reader(tmp_path)
    revoke(writer, *(f"agent:{number}" for number in range(10_000)), epoch=5)
    late = BoardReader(str(tmp_path / "board"))
    for who in (of("agent:9999"), of("agent:10000")):
        assert early.check(who, NOBODY) == late.check(who, NOBODY)
    assert (early.epoch, early.generation) == (late.epoch, late.generation) == (5, 2)
