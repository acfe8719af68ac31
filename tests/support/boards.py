"""Boards for tests: short ways to make, read and look into one, and the processes that a test races with, stops or kills."""

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

from ext.board import BoardReader, BoardWriter, SeenReader, SeenWriter, Selectors
from schemas.records import Standing

BOOT = (0x6565_6565 << 32) | 7
NOBODY = Selectors(())
WHILE_NS = 50_000_000_000
"""A test is over by then."""

AT_KEY, AT_START, AT_SEQUENCE = 16, 32, 64
TABLE_HEAD = 4096


def soon() -> int:
    """A time until which a board may be believed that no test sees the end of."""
    return time.monotonic_ns() + WHILE_NS


def board(folder: Path, slots: int = 64) -> BoardWriter:
    """A new board that is fresh and empty."""
    made = BoardWriter(str(folder / "board"), BOOT, slots)
    made.replace((), epoch=1, paused=False, policy=b"")
    made.fresh(soon())
    return made


def reader(folder: Path) -> BoardReader:
    return BoardReader(str(folder / "board"))


def revoke(writer: BoardWriter, *texts: str, epoch: int = 2) -> None:
    writer.change([(text, 0) for text in texts], (), epoch=epoch, paused=False, policy=b"")


def lift(writer: BoardWriter, *texts: str, epoch: int = 3) -> None:
    writer.change((), texts, epoch=epoch, paused=False, policy=b"")


def of(*texts: str, issued_s: int = 0) -> Selectors:
    return Selectors(texts, issued_s)


def sequence(folder: Path) -> int:
    """As it stands in the file."""
    with open(folder / "board", "rb") as file:
        return int(struct.unpack_from("<Q", file.read(TABLE_HEAD), AT_SEQUENCE)[0])


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.001)


def child(what: str, folder: Path, *arguments: int) -> "subprocess.Popen[str]":
    """One of the functions below in a process of its own."""
    command = [sys.executable, "-m", "tests.support.boards", what, str(folder), *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: "subprocess.Popen[str]") -> str:
    """What a child said at its end."""
    try:
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out.strip()


# -- what runs in other processes ------------------------------------------------------------------------------------

HALVES = 40
"""Texts of each state of `alternate`: they fill most of a small table, so that a torn walk would meet the other's."""


def state(number: int) -> tuple[list[str], int, bytes]:
    """What `alternate` writes as its state `number`: texts, epoch, policy. Each names which of the two kinds it is."""
    kind = number % 2
    return [f"agent:{kind}-{i}" for i in range(HALVES)], number, bytes([kind]) * 32


def see_halves(folder: Path, states: int) -> None:
    """Look until state `states` is there: all that one look shows is of one state, and states never go back."""
    board, epoch, seen = reader(folder), 0, [0, 0]
    first, second = (of(*state(kind)[0]) for kind in (0, 1))
    lasts = [of(state(kind)[0][-1]) for kind in (0, 1)]
    (folder / f"ready-{os.getpid()}").touch()
    while board.epoch < states:
        for who in (first, second, *lasts):
            standing = board.check(NOBODY, who)
            assert board.epoch >= epoch, "an older state came back"
            epoch = board.epoch
            kind = 0 if who in (first, lasts[0]) else 1
            assert standing == (Standing.REVOKED if epoch % 2 == kind else Standing.GO), (standing, epoch, kind)
            assert board.policy == bytes([epoch % 2]) * 32
            seen[epoch % 2] += 1
        assert board.check(first, second) == Standing.REVOKED, "there was a moment in which neither was revoked"
    assert min(seen) > 0, seen
    print("agreed", flush=True)


def see_stale(folder: Path, states: int) -> None:
    """What a board that is never fresh says is one state too: a door makes ready the policies that it names."""
    board, seen = reader(folder), [0, 0]
    (folder / f"ready-{os.getpid()}").touch()
    while board.epoch < states:
        assert board.check(NOBODY, NOBODY) == Standing.STALE
        assert board.policy == bytes([board.epoch % 2]) * 32
        seen[board.epoch % 2] += 1
    assert min(seen) > 0, seen
    print("agreed", flush=True)


def see_growth(folder: Path, entries: int) -> None:
    """The writer revokes `agent:N` as epoch N: what the board says of any agent follows from its epoch."""
    board = reader(folder)
    known = [of(f"agent:{number}") for number in range(entries + 1)]
    (folder / f"ready-{os.getpid()}").touch()
    number = generations = before = 0
    while board.epoch < entries:
        number = (number * 1_103_515_245 + 12_345) % (entries + 1)
        standing = board.check(known[number], NOBODY)
        epoch = board.epoch
        assert standing == (Standing.REVOKED if 1 <= number <= epoch else Standing.GO), (number, epoch)
        if 1 <= epoch < entries:
            assert board.check(known[epoch], NOBODY) == Standing.REVOKED
        generations += epoch != before
        before = epoch
    assert generations > 10, generations
    print("followed", flush=True)


def churn(folder: Path, texts: int) -> None:
    """Revoke and lift the same texts for ever, so that much of the time is spent in mid-change."""
    writer = board(folder, 8 * texts)
    many = [f"agent:{number}" for number in range(texts)]
    print("writes", flush=True)
    for epoch in range(2, 1 << 62, 2):
        revoke(writer, *many, epoch=epoch)
        lift(writer, *many, epoch=epoch + 1)


def say(folder: Path, words: int) -> None:
    """Be a door: each word's three parts tell its number."""
    door = SeenWriter(str(folder))
    for number in range(1, words + 1):
        door.write(number, bytes([number % 251]) * 32, number * 1_000)
        if number % 2_000 == 0:
            time.sleep(0.001)  # or it is over before the reader has a turn
    print("said", flush=True)


def hear(folder: Path, words: int) -> None:
    """Be a host: no word is torn, and none goes back."""
    door, last, different = SeenReader(str(folder)), 0, 0
    (folder / f"ready-{os.getpid()}").touch()
    while last < words:
        said = door.read()
        if said is None:
            continue
        epoch, policy, applied_ns = said
        assert (policy, applied_ns) == (bytes([epoch % 251]) * 32, epoch * 1_000), said
        assert epoch >= last
        different += epoch > last
        last = epoch
    print(f"heard {different}", flush=True)


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    run = {"halves": see_halves, "stale": see_stale, "growth": see_growth, "churn": churn, "say": say, "hear": hear}[what]
    run(Path(where), *map(int, rest))
