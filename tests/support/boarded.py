"""A host that is nothing but a board: real door processes on it, what they acknowledged, and what they recorded.

    with Boarded(tmp_path / "home", calls, doors=4) as host:
        host.start()
        host.revoke("agent:a1")
        assert host.finish()
"""

import hashlib
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from enforcers.doors.progress import Progress
from enforcers.doors.recorded import CallFile
from ext.board import BoardWriter, SeenReader
from ext.spool import SpoolReader
from pipeline.cli.replaydoors import ReplayDoors
from schemas.bundle import Bundle
from schemas.calls import RecordedCall
from schemas.home import Home
from schemas.layout import END_BYTES, RECORD_HEADER_BYTES
from schemas.process import private_dir
from schemas.records import STRING_FIELDS, Kind, Verdict
from tests.support.oracles import parse_end

HOST = "replay-1"
FRESH_NS = 5_000_000_000

_RECORD = struct.Struct("<I4xQQ8xQ24xQQ24xBB3xB")
_LENGTHS = struct.Struct("<20H")
_AGENT, _REASON, _DIGEST = (STRING_FIELDS.index(name) for name in ("agent", "reason", "policy_digest"))


@dataclass(slots=True, kw_only=True)
class Done:
    """One call as a door recorded it."""

    door: str
    seq: int
    ref: int
    recorded_ns: int
    epoch: int
    verdict: Verdict
    """The last word on it."""
    reason: str
    policy_digest: str
    withdrawn: bool = False
    """Whether its decision had let it out."""
    ended: bool = False


@dataclass(slots=True, kw_only=True)
class Said:
    """One door's word: from `applied_ns` on it obeys `epoch` and decides by `policy`."""

    epoch: int
    policy: str
    applied_ns: int


@dataclass(slots=True)
class Changed:
    """A state of the board, and from when on every reader can see it."""

    epoch: int
    revoked: frozenset[str]
    policy: str
    paused: bool
    written_ns: int = field(default=0)


class Boarded:
    """The board of one host and the doors of one replayed file. Nothing is sealed or sent."""

    def __init__(self, root: Path, calls: Path, *, doors: int, bundle: Bundle, rate: float = 0.0) -> None:
        self.home = Home(root)
        private_dir(self.home.host(HOST) / "bundle")
        self.board = BoardWriter(str(self.home.board(HOST)), 1)
        self.file = CallFile(str(calls))
        self.file.check()
        self.progress = Progress(self.home, str(calls), self.file.digest, self.file.lines)
        self.progress.run.parts = doors
        self.doors = ReplayDoors(self.home, HOST, self.file, self.progress, rate)
        self.states: list[Changed] = []
        self.said: dict[str, list[Said]] = {door.entry.boot: [] for door in self.doors.doors}
        self._revoked: set[str] = set()
        self._paused = False
        self._policy = self.put(bundle)
        self._readers: dict[str, SeenReader] = {}
        self._write()

    # -- the board ---------------------------------------------------------------------------------------------------

    def put(self, bundle: Bundle) -> str:
        """A bundle as the host has it on disk; returns its digest."""
        data = bundle.encode()
        digest = hashlib.sha256(data).hexdigest()
        (self.home.host(HOST) / "bundle" / f"{digest}.json").write_bytes(data)
        return digest

    def _write(self, revoke: str = "", lift: str = "") -> int:
        self._revoked = (self._revoked | ({revoke} - {""})) - {lift}
        epoch = len(self.states) + 1
        self.board.change(
            [(revoke, 0)] if revoke else [], [lift] if lift else [], epoch=epoch, paused=self._paused,
            policy=bytes.fromhex(self._policy),
        )  # fmt: skip
        self.states.append(Changed(epoch, frozenset(self._revoked), self._policy, self._paused, time.time_ns()))
        return epoch

    def revoke(self, text: str) -> int:
        """Returns the epoch."""
        return self._write(revoke=text)

    def lift(self, text: str) -> int:
        """Returns the epoch."""
        return self._write(lift=text)

    def decide_by(self, digest: str) -> int:
        """Returns the epoch."""
        self._policy = digest
        return self._write()

    def pause(self, paused: bool) -> int:
        """Returns the epoch."""
        self._paused = paused
        return self._write()

    def refresh(self) -> None:
        """A heartbeat that agreed."""
        self.board.fresh(time.monotonic_ns() + FRESH_NS)

    # -- the doors ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the doors and wait until each has acknowledged what stands on the board."""
        self.refresh()
        self.doors.start()
        deadline = time.monotonic() + 30
        while not all(self.said.values()):
            assert time.monotonic() < deadline, "a door does not start"
            self.look()

    def look(self) -> bool:
        """Look after the doors and hear what they acknowledge; whether one is left."""
        left = self.doors.tick()
        for door in self.doors.doors:
            boot = door.entry.boot
            folder = self.home.host(HOST) / "doors" / boot
            if boot not in self._readers and folder.exists():
                self._readers[boot] = SeenReader(str(folder))
            found = self._readers[boot].read() if boot in self._readers else None
            if found is not None:
                said = Said(epoch=found[0], policy=found[1].hex(), applied_ns=found[2])
                if not self.said[boot] or self.said[boot][-1] != said:
                    self.said[boot].append(said)
        return left

    def until(self, what: Callable[[], bool], seconds: float, why: str) -> None:
        """Look until something is so, and keep the board fresh."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"not within {seconds} s: {why}"
            self.refresh()
            self.look()
            time.sleep(0.001)

    def until_called(self, calls: int) -> None:
        """Wait until each door has called so many lines."""
        self.until(lambda: all(door.said.get("calls", 0) >= calls for door in self.doors.doors), 30, "every door calls")

    def acknowledged(self, epoch: int, boots: set[str] | None = None) -> bool:
        """Whether these doors, or all, have said that they obey it."""
        return all(said and said[-1].epoch >= epoch for boot, said in self.said.items() if boots is None or boot in boots)

    def pid(self, number: int) -> int:
        """Of the door with the n-th part."""
        return int(self.doors.doors[number].said["pid"])

    def finish(self) -> list[Done]:
        """Let the doors call what is left; returns `recorded`."""
        while self.look():
            self.refresh()
            time.sleep(0.001)
        return self.recorded()

    # -- afterwards --------------------------------------------------------------------------------------------------

    def calls(self) -> dict[int, RecordedCall]:
        """The lines of the file."""
        return {call.ref: call for call in self.file.calls()}

    def recorded(self) -> list[Done]:
        """Every call of every door, door by door in the order of its decisions."""
        found: list[Done] = []
        for boot in self.said:
            made: dict[int, Done] = {}
            for seq, call_seq, recorded_ns, epoch, ref, kind, verdict, ended, texts in self._records(boot):
                if kind == Kind.DECISION:
                    made[seq] = Done(
                        door=boot, seq=seq, ref=ref, recorded_ns=recorded_ns, epoch=epoch, verdict=Verdict(verdict),
                        reason=texts[_REASON], policy_digest=texts[_DIGEST], ended=ended,
                    )  # fmt: skip
                    continue
                assert kind == Kind.EFFECT
                done = made[call_seq]
                assert not done.ended
                done.ended = True
                if verdict == Verdict.DENY:
                    assert texts[-1] == f"{texts[_REASON]} while waiting"
                    done.verdict, done.reason, done.withdrawn, done.epoch = Verdict.DENY, texts[_REASON], True, epoch
            found += made.values()
        return found

    def _records(self, boot: str) -> Iterator[tuple[int, int, int, int, int, int, int, bool, list[str]]]:
        reader, last = SpoolReader(str(self.home.host(HOST) / "doors" / boot), int(boot, 16)), 0
        while runs := reader.read(1 << 20, 1 << 24):
            for run in runs:
                data, at = bytes(run.view), 0
                while at < len(data):
                    size, seq, call_seq, recorded_ns, epoch, ref, kind, verdict, room = _RECORD.unpack_from(data, at)
                    assert seq == last + 1
                    last = seq
                    texts, begin = [], at + RECORD_HEADER_BYTES
                    for length in _LENGTHS.unpack_from(data, at + 136):
                        texts.append(data[begin : begin + length].decode())
                        begin += length
                    end = parse_end(data[at + size - END_BYTES * room : at + size])
                    yield seq, call_seq, recorded_ns, epoch, ref, kind, verdict, end is not None, texts
                    at += size

    def __enter__(self) -> "Boarded":
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.doors.close()
        self.progress.close()
        self.board.close()
        self.file.close()
