"""The doors of a replay, seen from the replay: processes that are told what to call, say how far they are, and end with us."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from enforcers.doors.feeder import GO, STOPPED, Orders
from enforcers.doors.names import claim_name
from enforcers.doors.progress import DoorRun, Progress
from enforcers.doors.recorded import CallFile
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import OPERATOR, Lock, last_line, private_dir, rotate
from schemas.records import make_boot

DOORS_MAX: Final = 64
"""Doors of one replay."""

PIPE_BYTES: Final = 1 << 16


class DoorDied(Exception):
    """A door ended before its last line. The message is for the user."""


class _Door:
    """One door process."""

    def __init__(self, home: Home, name: str, claim: Lock, entry: DoorRun) -> None:
        self.name = name
        self.entry = entry
        self.said: dict[str, Any] = {}
        """What it last said of itself: see `enforcers.doors.feeder`."""
        self.ended = True
        """Whether no process of it lives."""
        self._home = home
        self._claim = claim
        self._rest = b""
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self, orders: Orders) -> None:
        log = self._log()
        private_dir(log.parent)
        rotate(log)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "enforcers.doors.feeder", "--home", str(self._home.root), "--name", self.name],
                env=os.environ | {"WARDLINE_PARENT": str(os.getpid())}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=output, start_new_session=True, pass_fds=(orders.file.handle,), bufsize=0,
            )  # fmt: skip
        finally:
            os.close(output)
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self.ended = False
        self.tell(orders.encode())

    def tell(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which `look` finds
            self._process.stdin.write(data)

    def look(self) -> None:
        if self._process is None or self.ended:
            return
        code = self._process.poll()
        self._hear()  # after the look at the code: what it said last is there when it has ended
        if code is None:
            return
        self.ended = True
        if code == 0:
            return
        words = last_line(self._log()).removeprefix("wardline: ")
        if code == OPERATOR:
            raise OperatorFault(words)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}: {words}"
        how = "was asked to stop" if code == STOPPED else how
        raise DoorDied(f"{self.name} {how}")

    def _hear(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while data := self._process.stdout.read(PIPE_BYTES):
            *lines, self._rest = (self._rest + data).split(b"\n")
            if lines:
                self.said = json.loads(lines[-1])

    def stop(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)  # one that is stopped could not hear

    def close(self) -> None:
        """End it by force if it lives, and let go of its name."""
        if self._process is not None:
            self.stop(signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            if not self.ended:
                self._home.run_file(self.name).unlink(missing_ok=True)
        self._claim.release()

    def _log(self) -> Path:
        return self._home.log / f"{self.name}.log"


class ReplayDoors:
    """A door for each part of the file that has something left."""

    def __init__(self, home: Home, host: str, file: CallFile, progress: Progress, rate: float) -> None:
        """`rate` is that of all doors together, 0 for as fast as it goes. Raises OperatorFault when all names are held."""
        self._home = home
        self._progress = progress
        run = progress.run
        left = [part for part in range(1, run.parts + 1) if progress.left(part)]
        self._orders: list[Orders] = []
        self.doors: list[_Door] = []
        try:
            for part in left:
                boot = f"{make_boot(int(time.time()), secrets.randbits(32)):016x}"
                entry = DoorRun(host=host, boot=boot, part=part)
                self.doors.append(_Door(home, *claim_name(home), entry))
                self._orders.append(
                    Orders(host=host, boot=boot, file=file.checked(), part=part, parts=run.parts, after=progress.done(part),
                           rate=rate / run.parts)
                )  # fmt: skip
                run.doors.append(entry)
        except OperatorFault:
            self.close()
            raise

    def start(self) -> None:
        """Start them all."""
        self._progress.save()  # a crash from here on: each door is named, so nothing that one records is forgotten
        for door, orders in zip(self.doors, self._orders, strict=True):
            door.spawn(orders)

    def tick(self) -> bool:
        """Look after them; whether one of them is left.

        Raises DoorDied, or OperatorFault where a door says that somebody must put something right.
        """
        made = []
        for door in self.doors:
            door.look()
            if not door.entry.made and door.said.get("state") == "made":
                door.entry.made = True
                made.append(door)
        if made:
            self._progress.save()  # a crash before this: these doors have recorded nothing
            for door in made:
                door.tell(GO)
        return not all(door.ended for door in self.doors)

    def stop(self, idle: Callable[[], None], force: Callable[[], bool]) -> None:
        """Let each finish the call in hand and close; when `force()`, kill them, which loses nothing.

        `idle` is called while they stop.
        """
        try:
            for door in self.doors:
                door.stop(signal.SIGTERM)
            while not all(door.ended for door in self.doors) and not force():
                for door in self.doors:
                    with contextlib.suppress(DoorDied, OperatorFault):  # one reason to stop is enough
                        door.look()
                idle()
        finally:
            self.close()

    def close(self) -> None:
        """Kill whatever lives, and let go of the names."""
        for door in self.doors:
            door.close()

    def waits(self) -> str:
        """What a door waits for now, and which."""
        waiting = [door for door in self.doors if not door.ended and door.said.get("waits")]
        return f"waiting: {waiting[0].name}: {waiting[0].said['waits']}" if waiting else ""

