"""How far the last run of a file has come: `replay/DIGEST.json`, one file for each recorded-calls file.

It names the doors of the run, never a line: how far a door got is what its own spool says (`last_ref` in `door.json`), since
only that is true whatever dies. A run has `parts`, one for each of its doors: part p of n has the lines p, p + n, p + 2n, ...
in order. A line is done when its decision is recorded. So each line is called once:

    crash before the decision is in the spool     the line is not done; the next run calls it
    crash behind it, before the effect            the line is done; the host records its call as lost; it is not called again
    crash before `made`                           the door has recorded nothing; its folder may be there or not
    crash of the host, of the broker or store     nothing: records stay in the spool and the outbox until they are stored
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import Lock, private_dir, take_or_fail, write_atomic


@dataclass(slots=True, kw_only=True)
class DoorRun:
    """One door of a run."""

    host: str
    boot: str
    """16 hex digits: the name of its folder."""
    part: int = 1
    """Whose lines it calls."""
    made: bool = False
    """Whether its folder is there; until then nothing is recorded in it."""
    last_ref: int | None = None
    """The last line that is done, once the door has ended."""


@dataclass(slots=True, kw_only=True)
class Run:
    """What the file holds."""

    file: str
    lines: int
    parts: int = 1
    finished: bool = False
    """Every line is called, and every record stored."""
    doors: list[DoorRun] = field(default_factory=list)


class Progress:
    """The last run of one file. Holds the file's lock, so that two runs do not continue each other."""

    def __init__(self, home: Home, file: str, digest: bytes, lines: int) -> None:
        """Raises OperatorFault when another process replays the same file on this home."""
        self._home = home
        self._path = private_dir(home.replay) / f"{digest.hex()}.json"
        self._lock: Lock = take_or_fail(self._path.with_suffix(".lock"), f"the replay of `{file}`")
        self.run = Run(file=file, lines=lines)

    def load(self) -> bool:
        """Take up the last run; False when there is none. Raises OperatorFault when its file is damaged."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return False
        try:
            value: dict[str, Any] = json.loads(data)
            doors = [DoorRun(**door) for door in value.pop("doors")]
            self.run = Run(**value, doors=doors)
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise OperatorFault(f"{self._path}: is damaged; remove it and replay the file from its first line") from fault
        return True

    def save(self) -> None:
        """Write it, whole and synced."""
        write_atomic(self._path, json.dumps(asdict(self.run)).encode())

    def settle(self) -> list[DoorRun]:
        """Look how far each door got; returns those that have not ended, which their host must adopt first.

        Raises OperatorFault when the folder of a door is gone: hosts keep it for 30 days.
        """
        left = []
        for door in list(self.run.doors):
            if door.last_ref is not None:
                continue
            folder = self._folder(door)
            if not folder.exists():
                if door.made:
                    raise OperatorFault(f"{folder}: is gone, so nobody knows how far `{self.run.file}` was replayed")
                self.run.doors.remove(door)
                continue
            said = door_said(folder)
            if said is None:
                left.append(door)
            else:
                door.last_ref = int(said["last_ref"])
        return left

    def done(self, part: int) -> int:
        """The last line of a part that is done, 0 before its first. Only after `settle` has nothing left."""
        return max((door.last_ref or 0 for door in self.run.doors if door.part == part), default=0)

    def left(self, part: int) -> bool:
        """Whether a part has lines that are not done."""
        return self.done(part) + self.run.parts <= self.run.lines if self.done(part) else part <= self.run.lines

    def lines_done(self) -> int:
        """Lines that are done, of all parts."""
        return sum(lines_to(self.done(part), part, self.run.parts) for part in range(1, self.run.parts + 1))

    def all_stored(self, stored_seq: Mapping[str, int]) -> bool:
        """Whether every door has ended and everything in it is stored: by its own file, or by what a living host says.

        `stored_seq` is the host's: for each of its doors the seq up to which everything is stored.
        """
        return all(door.last_ref is not None and self._is_stored(door, stored_seq) for door in self.run.doors)

    def _is_stored(self, door: DoorRun, stored_seq: Mapping[str, int]) -> bool:
        folder = self._folder(door)
        if not folder.exists():
            return True  # a host removes a finished folder after 30 days, never one with something in it that is not stored
        said = door_said(folder) or {}
        return bool(said.get("stored")) or stored_seq.get(door.boot, 0) >= said.get("last_seq", 1)

    def _folder(self, door: DoorRun) -> Path:
        return self._home.host(door.host) / "doors" / door.boot

    def close(self) -> None:
        """Let another run of the file begin."""
        self._lock.release()


def lines_to(line: int, part: int, parts: int) -> int:
    """How many lines a part has up to a line."""
    return max(0, (line - part) // parts + 1)


def door_said(folder: Path) -> dict[str, Any] | None:
    """The `door.json` of a door that has ended, by its own word or its host's; None before that."""
    try:
        said = json.loads((folder / "door.json").read_bytes())
        return dict(said) if said["closed"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
