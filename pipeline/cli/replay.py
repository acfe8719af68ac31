"""`wardline replay FILE`: recorded calls through the core, spool, host, Kafka, worker and store that live calls take.

    check the whole file -> own host ready -> (resume: dead door adopted) -> call line after line -> stored -> summary

It is the door of a host of its own, which it starts again when that dies; `wardline up` brings broker, worker and store.
"""

import argparse
import contextlib
import re
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from enforcers.doors.progress import DoorRun, Progress
from enforcers.doors.recorded import CallFile
from enforcers.doors.replay import ReplayDoor
from enforcers.doors.spooler import Spooler
from ext.decide import Matcher
from pipeline.cli.common import (
    Commands,
    add_clickhouse,
    add_kafka,
    called_as,
    config_of,
    home_of,
    home_words,
    open_home,
    refuse_strangers,
)
from pipeline.cli.replayhost import ReplayHost
from pipeline.cli.replayview import Counts, View
from pipeline.cli.supervise import SAME_SIGNAL_S
from schemas.config import Config
from schemas.errors import OperatorFault, PeerFault
from schemas.home import Home
from schemas.records import Decision, Verdict, make_boot

TICK_S: Final = 0.1
"""How often the host is looked after and the figures are shown."""

LINES_A_LOOK: Final = 64
"""Calls between two looks at the clock."""

BEHIND_S: Final = 1.0
"""With `--rate`: how far behind its time a run may catch up; what is more was a wait, and is not made good by a burst."""

TIDY_S: Final = 4.0
"""How long a finished run waits for its host to put away what is stored; what is left then, an enforcer finds and puts away."""


class Stopped(Exception):
    """The user wants to stop."""


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `replay`."""
    text = "run recorded calls through decision, record and store"
    parser = commands.add_parser("replay", parents=[common], help=text, allow_abbrev=False)
    parser.add_argument("file", metavar="FILE", help="recorded calls, one JSON object a line (docs/calls-format.md)")
    parser.add_argument("--rate", type=rate, metavar="N", help="calls a second (default: as fast as it goes)")
    parser.add_argument("--resume", action="store_true", help="go on where the last run of this file ended")
    add_kafka(parser)
    add_clickhouse(parser)
    parser.set_defaults(run=run_replay)


def rate(text: str) -> float:
    """Calls a second, more than zero."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text, re.ASCII) or not float(text):
        raise argparse.ArgumentTypeError(f"`{text}` is not a number of calls a second")
    return float(text)


def run_replay(args: argparse.Namespace) -> int:
    """`wardline replay`."""
    refuse_strangers()
    home = home_of(args)
    open_home(home)
    config = config_of(args, home)
    with CallFile(args.file) as file:
        file.check()
        progress = Progress(home, file.name, file.digest, file.lines)
        try:
            return _Replay(args, home, config, file, progress).run()
        finally:
            progress.close()


class _Replay:
    """One run of one file. Everything is done in one thread; what waits calls `_idle` again and again."""

    def __init__(self, args: argparse.Namespace, home: Home, config: Config, file: CallFile, progress: Progress) -> None:
        self._args = args
        self._home = home
        self._config = config
        self._file = file
        self._progress = progress
        self._counts = Counts(lines=file.lines)
        self._view = View(self._counts)
        self._signals: list[tuple[int, float]] = []
        self._host: ReplayHost
        self._spooler: Spooler | None = None
        self._door: ReplayDoor | None = None
        self._ticked = 0.0
        self._known = False
        """Whether we know how far the run has come: a door that died says so only when it is adopted."""

    def run(self) -> int:
        """Do what is to do; returns the exit code."""
        path = self._args.file
        if not self._file.lines:
            print(f"{path} is empty: there is nothing to call")
            return 0
        if not self._args.resume:
            self._progress.save()
        elif not self._progress.load():
            print(f"wardline: {path} has no run to resume; this one begins at line 1", file=sys.stderr)
            self._progress.save()
        elif self._is_finished():
            print(f"{path}: all {self._file.lines:,} lines were called and everything is stored; nothing is left to resume")
            return 0
        with self._listening(), self._view:
            code = self._hosted()
        if code:
            self._say_how_to_go_on()
        else:
            print("\n".join(self._counts.summary()))
        return code

    def _is_finished(self) -> bool:
        """Whether the run that was taken up has nothing left to do."""
        progress = self._progress
        if not progress.run.finished:
            progress.run.finished = (
                not progress.settle() and progress.done() >= self._file.lines and progress.all_stored({})
            )
            progress.save()
        return progress.run.finished

    def _hosted(self) -> int:
        """Run with a host of our own, which ends with us; returns the exit code."""
        waiting = self._progress.settle()
        self._host = ReplayHost(self._home, self._args, self._view.tell, waiting[0].host if waiting else "")
        try:
            self._main()
        except Stopped:
            if len(self._signals) == 1:
                self._view.tell("stops: what is recorded is being stored; once more leaves at once, which loses nothing")
            return 128 + self._signals[0][0]
        finally:
            self._host.stop(lambda: len(self._signals) > 1)
        return 0

    def _main(self) -> None:
        progress, counts = self._progress, self._counts
        while not self._host.bundle:
            self._wait(f"waiting for host {self._host.name}")
        while left := progress.settle():
            # that door died with a call open: its host seals what it wrote and records the call as lost
            self._wait(f"waiting for door {left[0].boot} of {left[0].host} to be adopted")
        progress.save()
        counts.before, self._known = progress.done(), True
        if counts.before < counts.lines:
            self._call_all(counts.before)
        called = time.monotonic()
        while not progress.all_stored(self._host.stored_seq()):
            self._wait("waiting until everything is stored; is `wardline up` running?" if self._is_late(called) else "")
        counts.stored, counts.stored_s = counts.records, time.monotonic() - called
        progress.run.finished = True
        progress.save()
        while time.monotonic() - called - counts.stored_s < TIDY_S and not self._host.tidy():
            self._wait("")

    def _is_late(self, since: float) -> bool:
        return time.monotonic() - since > 10

    # -- calling -----------------------------------------------------------------------------------------------------

    def _call_all(self, after: int) -> None:
        entry = DoorRun(host=self._host.name, boot=f"{make_boot(int(time.time()), secrets.randbits(32)):016x}")
        self._progress.run.doors.append(entry)
        self._progress.save()  # a crash from here on: the door is named, so nothing that it records is forgotten
        self._spooler = self._open(int(entry.boot, 16))
        entry.made = True
        self._progress.save()  # a crash before this: the door has recorded nothing
        self._door = ReplayDoor(self._spooler, self._matcher(), self._idle)
        begun = time.monotonic()
        try:
            self._call_each(after, begun)
        finally:
            self._counts.calling_s = time.monotonic() - begun
            if self._door.open:
                # only who leaves at once, or a bug of ours, ends with a call out: its host records it as lost
                self._spooler.abandon()
            else:
                self._close(self._spooler)
                entry.last_ref = self._spooler.last_ref
                self._progress.save()

    def _call_each(self, after: int, begun: float) -> None:
        assert self._door is not None
        counts, pace = self._counts, 1 / self._args.rate if self._args.rate else 0.0
        due = begun
        bundle = self._host.bundle
        for said in self._file.calls(after):
            if pace:
                due = max(due + pace, time.monotonic() - BEHIND_S)
                self._sleep_until(due)
            elif counts.calls % LINES_A_LOOK == 0:
                self._idle()
            if self._host.bundle != bundle:
                # the host was started again and found other policies
                bundle = self._host.bundle
                self._door.matcher = self._matcher()
            self._count(self._door.call(said))

    def _count(self, decision: Decision) -> None:
        if decision.verdict is Verdict.ALLOW:
            self._counts.allowed += 1
            return
        self._counts.refused += 1
        self._counts.chain_refused += decision.reason in ("chain", "identity")

    def _matcher(self) -> Matcher:
        path = Path(self._host.bundle)
        try:
            matcher = Matcher(path.read_bytes())
        except OSError as fault:
            raise OperatorFault(f"{path}: cannot be read: {(fault.strerror or str(fault)).lower()}") from fault
        if not matcher.policies:
            self._view.tell(f"{self._home.policies} has no policy, so every call is refused")
        return matcher

    def _open(self, boot: int) -> Spooler:
        while True:
            try:
                return Spooler(self._home.host(self._host.name), boot, self._config.enforcer)
            except (PeerFault, OSError) as fault:
                self._wait(f"no spool yet: {fault}")

    def _close(self, spooler: Spooler) -> None:
        while True:
            try:
                return spooler.close()
            except OSError as fault:  # a full disk; who leaves now leaves a dead door with nothing open
                self._wait(f"the door cannot be closed yet: {fault.strerror}")

    # -- waiting -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Count the signals that ask us to stop; whoever works looks when it suits."""

        def heard(number: int, _: object) -> None:
            now = time.monotonic()
            if not self._signals or now - self._signals[-1][1] > SAME_SIGNAL_S:
                self._signals.append((number, now))

        before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _idle(self, may_stop: bool = True, status: str = "") -> None:
        """Look after the host and the view. Raises Stopped at the first signal, or the second where a call is out."""
        if self._signals and (may_stop or len(self._signals) > 1):
            raise Stopped
        now = time.monotonic()
        if now - self._ticked < TICK_S:
            return
        self._ticked = now
        self._host.tick()
        full = self._door.full if self._door is not None else ""
        self._view.status(f"waiting: {full}" if full else status)
        if self._spooler is not None:
            self._counts.records = self._spooler.last_seq
            self._counts.stored = self._host.stored_seq().get(f"{self._spooler.boot:016x}", self._counts.stored)
        self._view.update()

    def _wait(self, what: str) -> None:
        self._idle(status=what)
        time.sleep(TICK_S / 4)

    def _sleep_until(self, due: float) -> None:
        self._idle()
        while (left := due - time.monotonic()) > 0:
            time.sleep(min(left, TICK_S))
            self._idle()

    def _say_how_to_go_on(self) -> None:
        done, lines = self._counts.done, self._counts.lines
        words = f"{called_as()} replay {shlex.quote(self._args.file)} --resume{home_words(self._home)}"
        where = f"behind line {done:,} of {lines:,}" if self._known else "before the first call"
        if done == lines:
            where = f"with all {lines:,} lines called, before everything was known to be stored"
        print(f"wardline: stopped {where}; to go on: {words}", file=sys.stderr)
