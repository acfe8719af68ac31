"""A process that is one door of a replay: `python -m enforcers.doors.feeder --home DIR --name door-N`, the replay's own child.

    orders on stdin -> folder, lock, board, policies -> says that it is made -> `go` on stdin -> its lines -> closed

It says how far it is on stdout, as lines of JSON, and to everybody in its run file. It leaves when its stdin is closed or on
SIGTERM, after the call in hand; then everything that it recorded is its host's.
"""

import argparse
import contextlib
import json
import logging
import os
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from enforcers.doors.obeyed import LOOK_S, Obeyed
from enforcers.doors.recorded import CallFile, Checked
from enforcers.doors.replay import ReplayDoor
from enforcers.doors.spooler import Spooler
from schemas.config import load_config
from schemas.errors import OperatorFault, PeerFault, WardlineError
from schemas.home import Home
from schemas.process import Lock, leave_with_parent, write_run_file
from schemas.records import Verdict
from schemas.telemetry import setup_logging

log = logging.getLogger(__name__)

GO: Final = b"go\n"

STOPPED: Final = 128 + signal.SIGTERM
"""Exit code of a door that closed before its last line, since it was asked to."""

SAID_CHARS_MAX: Final = 500
"""Of one text that we say: a line stays within what a pipe takes in one piece."""

SAY_S: Final = 0.1
"""How often the replay is told how far we are."""

LINES_A_LOOK: Final = 64
"""Calls between two looks at the clock."""

BEHIND_S: Final = 1.0
"""With a rate: how far behind its time a door may catch up; what is more was a wait, and is not made good by a burst."""

HELD_S: Final = 10.0
"""How long our name may be held by a door whose replay was killed: it leaves within two seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a replay tells its door."""

    host: str
    boot: str
    """16 hex digits: the door's own."""
    file: Checked
    part: int
    parts: int
    after: int
    """The last line of the part that is done."""
    rate: float
    """Calls a second of this door; 0: as fast as it goes."""

    def encode(self) -> bytes:
        """One line."""
        return json.dumps(asdict(self)).encode() + b"\n"


def parse_orders(line: bytes) -> Orders:
    """Read what `Orders.encode` made."""
    said: dict[str, Any] = json.loads(line)
    return Orders(**{**said, "file": Checked(**said["file"])})


class Stopped(Exception):
    """Our replay wants us to stop, or is gone."""


class Feeder:
    """One door at work. One thread decides, records and acknowledges; what waits calls `_rest` again and again."""

    def __init__(self, home: Home, name: str, orders: Orders) -> None:
        self._home = home
        self._name = name
        self._orders = orders
        self._folder = home.host(orders.host)
        self._limits = load_config(home.config).enforcer
        self._spooler: Spooler
        self._obeyed: Obeyed | None = None
        self._door: ReplayDoor | None = None
        self._state = "starting"
        self._waits = ""
        self._calls = 0
        self._allowed = 0
        self._reasons: Counter[str] = Counter()
        self._begun = self._ended = 0.0
        """When the first call was taken and the last was recorded, CLOCK_MONOTONIC."""
        self._stop = False
        self._said_at = 0.0

    def run(self) -> int:
        """Call every line that is to be called; returns the exit code."""
        signal.signal(signal.SIGTERM, self._asked)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is our replay's to hear
        os.set_blocking(sys.stdout.fileno(), False)
        lock = self._own_lock()
        try:
            with CallFile.again(self._orders.file) as file:
                self._begin()
                try:
                    self._wait_for_go()
                    self._call_each(file)
                finally:
                    self._end()  # not behind a kill -9: our host does it then
        except Stopped:
            return STOPPED
        finally:
            self._say(last=True)
            self._home.run_file(self._name).unlink(missing_ok=True)
            lock.release()
        return 0

    def _asked(self, *_: object) -> None:
        self._stop = True

    def _own_lock(self) -> Lock:
        lock, deadline = Lock(self._home.run / f"{self._name}.lock"), time.monotonic() + HELD_S
        while not lock.take():
            if time.monotonic() > deadline:
                raise OperatorFault(f"{self._name} is held by process {lock.holder()} (`{lock.path}`)")
            self._rest(f"waiting for process {lock.holder()} to let go of {self._name}", look=False)
        return lock

    # -- the door's life ---------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Have a folder, a spool, a board and policies."""
        boot = int(self._orders.boot, 16)
        while True:
            try:
                self._spooler = Spooler(self._folder, boot, self._limits)
                break
            except (PeerFault, OSError) as fault:
                self._rest(f"no spool yet: {fault}")
        while self._obeyed is None:
            try:
                self._obeyed = Obeyed(self._home.board(self._orders.host), self._folder / "bundle", self._spooler.folder)
            except (PeerFault, OSError) as fault:
                self._rest(f"no room for a word yet: {fault}")
        self._door = ReplayDoor(self._spooler, self._obeyed, self._rest)
        self._state = "made"

    def _wait_for_go(self) -> None:
        """Record nothing before our replay has written down that this door is made: then nothing can be forgotten."""
        self._say()
        while not select.select([sys.stdin.fileno()], [], [], 0)[0]:
            self._rest("")
        if os.read(sys.stdin.fileno(), len(GO)) != GO:
            raise Stopped
        self._state = "ready"

    def _call_each(self, file: CallFile) -> None:
        orders, pace = self._orders, 1 / self._orders.rate if self._orders.rate else 0.0
        self._begun = time.monotonic()
        due = self._begun + pace * (orders.part - 1) / orders.parts  # side by side, not all at once
        try:
            self._call_lines(file, pace, due)
        finally:
            self._ended = time.monotonic()

    def _call_lines(self, file: CallFile, pace: float, due: float) -> None:
        assert self._door is not None
        orders, door, reasons = self._orders, self._door, self._reasons
        for said in file.calls(orders.after, orders.part, orders.parts):
            if pace:
                due = max(due + pace, time.monotonic() - BEHIND_S)
                self._sleep_until(due)
            elif self._calls % LINES_A_LOOK == 0:
                self._look_up()
            decision = door.call(said)
            self._calls += 1
            if decision.verdict is Verdict.ALLOW:
                self._allowed += 1
            else:
                reasons[decision.reason] += 1

    def _end(self) -> None:
        """Close the door: it is no door of its host from here on, and nobody waits for its word."""
        self._state = "stopping"
        if self._door is not None and self._door.open:
            self._spooler.abandon()  # a bug of ours ended a call that was out: our host records it as lost
            return
        while True:
            try:
                return self._spooler.close()
            except OSError as fault:  # a full disk; who is killed now leaves a dead door with nothing open
                self._rest(f"the door cannot be closed yet: {fault.strerror}", may_stop=False)

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _rest(self, why: str, *, may_stop: bool = True, look: bool = True) -> None:
        """A short while of waiting for something, obeying the board meanwhile. Raises Stopped when we are to stop."""
        self._waits = why
        if look and self._obeyed is not None:
            self._obeyed.look(wait=not self._calls)
        self._look_up(may_stop)
        time.sleep(LOOK_S)

    def _look_up(self, may_stop: bool = True) -> None:
        if self._stop and may_stop:
            raise Stopped
        if time.monotonic() - self._said_at >= SAY_S:
            self._say()

    def _sleep_until(self, due: float) -> None:
        assert self._obeyed is not None
        self._look_up()
        while (left := due - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_S))
            self._obeyed.look()
            self._look_up()

    # -- saying ------------------------------------------------------------------------------------------------------

    def _say(self, *, last: bool = False) -> None:
        self._said_at = time.monotonic()
        obeyed, waits = self._obeyed, self._waits
        self._waits = ""
        said: dict[str, Any] = {
            "name": self._name, "pid": os.getpid(), "address": "", "state": self._state, "host": self._orders.host,
            "boot": self._orders.boot, "part": self._orders.part, "calls": self._calls, "allowed": self._allowed,
            "reasons": dict(self._reasons), "begun": self._begun, "ended": self._ended, "waits": waits[:SAID_CHARS_MAX],
            "records": self._spooler.last_seq if obeyed else 0,
            "epoch": obeyed.board.epoch if obeyed else 0,
            "policy_digest": (obeyed.matchers.policy or b"").hex() if obeyed else "",
            "policies": obeyed.matchers.current.policies if obeyed and obeyed.may_decide else None,
            "fault": obeyed.matchers.fault[:SAID_CHARS_MAX] if obeyed else "",
        }  # fmt: skip
        if last:
            os.set_blocking(sys.stdout.fileno(), True)
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # what is said next says more
            os.write(sys.stdout.fileno(), json.dumps(said).encode() + b"\n")
        with contextlib.suppress(OSError):  # a full disk: whoever looks at the run file sees old figures
            write_run_file(self._home.run_file(self._name), said)


def main(argv: Sequence[str] | None = None) -> int:
    """Be one door; returns the exit code."""
    leave_with_parent()
    os.umask(0o077)
    parser = argparse.ArgumentParser(prog="door", allow_abbrev=False)
    parser.add_argument("--home", required=True)
    parser.add_argument("--name", required=True)
    args = parser.parse_args(argv)
    setup_logging(args.name)
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as orders:  # unbuffered: `go` is waited for with select
        line = orders.readline()
    try:
        return Feeder(Home(Path(args.home)), args.name, parse_orders(line)).run()
    except WardlineError as fault:
        print(f"wardline: {fault}", file=sys.stderr)
        return 2
    except OSError as fault:
        where = f"{fault.filename}: " if fault.filename else ""
        print(f"wardline: {where}{(fault.strerror or str(fault)).lower()}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
