"""`wardline replay FILE`: recorded calls through the core, spool, host, Kafka, worker and store that live calls take.

    check the whole file -> own host ready -> (resume: dead doors adopted) -> doors call their lines -> stored -> summary

Its doors are processes of a host of its own, which it starts again when that dies; `wardline up` brings broker, control, worker
and store. A door that dies ends the run: what it had open is recorded as lost, and `--resume` goes on.
"""

import argparse
import contextlib
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from typing import Final

from enforcers.doors.progress import Progress
from enforcers.doors.recorded import CallFile
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
from pipeline.cli.replaydoors import DOORS_MAX, DoorDied, ReplayDoors
from pipeline.cli.replayhost import ReplayHost
from pipeline.cli.replayview import Counts, View
from pipeline.cli.supervise import SAME_SIGNAL_S
from schemas.errors import OperatorFault
from schemas.home import Home

TICK_S: Final = 0.1
"""How often the host and the doors are looked after and the figures are shown."""

LATE_S: Final = 10.0
"""How long a wait may take before we say what it may be for."""

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
    parser.add_argument("--doors", type=doors, metavar="N", help=f"processes that call, 1 to {DOORS_MAX} (default 1)")
    parser.add_argument("--resume", action="store_true", help="go on where the last run of this file ended")
    add_kafka(parser)
    add_clickhouse(parser)
    parser.set_defaults(run=run_replay)


def rate(text: str) -> float:
    """Calls a second, more than zero."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text, re.ASCII) or not float(text):
        raise argparse.ArgumentTypeError(f"`{text}` is not a number of calls a second")
    return float(text)


def doors(text: str) -> int:
    """A number of doors."""
    if not re.fullmatch(r"[0-9]{1,3}", text, re.ASCII) or not 1 <= int(text) <= DOORS_MAX:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number from 1 to {DOORS_MAX}")
    return int(text)


def run_replay(args: argparse.Namespace) -> int:
    """`wardline replay`."""
    refuse_strangers()
    home = home_of(args)
    open_home(home)
    config_of(args, home)  # what is wrong in it is said now, and not by a host or a door
    with CallFile(args.file) as file:
        file.check()
        progress = Progress(home, file.name, file.digest, file.lines)
        try:
            return _Replay(args, home, file, progress).run()
        finally:
            progress.close()


class _Replay:
    """One run of one file. Everything is done in one thread; what waits calls `_wait` again and again."""

    def __init__(self, args: argparse.Namespace, home: Home, file: CallFile, progress: Progress) -> None:
        self._args = args
        self._home = home
        self._file = file
        self._progress = progress
        self._counts = Counts(lines=file.lines)
        self._view = View(self._counts)
        self._signals: list[tuple[int, float]] = []
        self._host: ReplayHost
        self._doors: ReplayDoors | None = None
        self._told: set[str] = set()
        self._ticked = 0.0
        self._known = False
        """Whether we know how far the run has come: a door that died says so only when it is adopted."""

    def run(self) -> int:
        """Do what is to do; returns the exit code."""
        path = self._args.file
        if not self._file.lines:
            print(f"{path} is empty: there is nothing to call")
            return 0
        self._take_up()
        if self._is_finished():
            print(f"{path}: all {self._file.lines:,} lines were called and everything is stored; nothing is left to resume")
            return 0
        with self._listening(), self._view:
            code = self._hosted()
        if code:
            self._say_how_to_go_on()
        else:
            print("\n".join(self._counts.summary()))
        return code

    def _take_up(self) -> None:
        """Begin a run, or go on with the last. Raises OperatorFault where that had another number of doors."""
        path, wanted, progress = self._args.file, self._args.doors, self._progress
        progress.run.parts = wanted or 1
        found = self._args.resume and progress.load()
        if self._args.resume and not found:
            print(f"wardline: {path} has no run to resume; this one begins at line 1", file=sys.stderr)
        if found and wanted not in (None, progress.run.parts):
            raise OperatorFault(f"the last run of {path} has --doors {progress.run.parts}, --resume cannot make it {wanted}")
        if not found:
            progress.save()
        self._counts.doors = progress.run.parts

    def _is_finished(self) -> bool:
        """Whether the run that was taken up has nothing left to do."""
        progress = self._progress
        if not progress.run.finished and progress.run.doors:
            progress.run.finished = (
                not progress.settle() and progress.lines_done() >= self._file.lines and progress.all_stored({})
            )
            progress.save()
        return progress.run.finished

    def _hosted(self) -> int:
        """Run with a host of our own, which ends with us; returns the exit code."""
        waiting = self._progress.settle()
        self._host = ReplayHost(self._home, self._args, self._view.tell, waiting[0].host if waiting else "")
        code = 0
        try:
            self._main()
        except Stopped:
            if len(self._signals) == 1:
                self._view.tell("stops: what is recorded is being stored; once more leaves at once, which loses nothing")
            code = 128 + self._signals[0][0]
        except DoorDied as fault:
            self._view.tell(f"{fault}; the other doors stop too" if self._counts.doors > 1 else str(fault))
            self._known, code = False, 1
        finally:
            self._host.stop(lambda: len(self._signals) > 1)
        return code

    def _main(self) -> None:
        progress, counts = self._progress, self._counts
        begun = time.monotonic()
        while not self._host.ready:
            self._wait(self._waiting_for_host(time.monotonic() - begun > LATE_S))
        while left := progress.settle():
            # that door died with a call open: its host seals what it wrote and records the call as lost
            self._wait(f"waiting for door {left[0].boot} of {left[0].host} to be adopted")
        progress.save()
        counts.before, self._known = progress.lines_done(), True
        if counts.before < counts.lines:
            self._call_all()
        called = time.monotonic()
        while not progress.all_stored(self._host.stored_seq()):
            late = time.monotonic() - called > LATE_S
            self._wait("waiting until everything is stored; is `wardline up` running?" if late else "")
        counts.stored, counts.stored_s = counts.records, time.monotonic() - called
        progress.run.finished = True
        progress.save()
        while time.monotonic() - called - counts.stored_s < TIDY_S and not self._host.tidy():
            self._wait("")

    def _waiting_for_host(self, late: bool) -> str:
        why = self._host.why()
        question = "; is `wardline up` running?" if late else ""
        return f"waiting for host {self._host.name}{f', which says: {why}' if why else ''}{question}"

    def _call_all(self) -> None:
        """Have the doors call every line that is left; they have closed when this returns, however it ends."""
        doors = ReplayDoors(self._home, self._host.name, self._file, self._progress, self._args.rate or 0.0)
        self._doors = doors
        try:
            doors.start()
            while doors.tick():
                self._wait(doors.waits())
        finally:
            doors.stop(lambda: self._wait("the doors stop", may_stop=False), lambda: len(self._signals) > 1)
            self._look_at_doors(doors)
            self._progress.settle()
            self._progress.save()

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

    def _wait(self, what: str, *, may_stop: bool = True) -> None:
        """A short while, in which the host and the view are looked after. Raises Stopped at a signal."""
        if self._signals and may_stop:
            raise Stopped
        time.sleep(TICK_S / 4)
        now = time.monotonic()
        if now - self._ticked < TICK_S:
            return
        self._ticked = now
        self._host.tick()
        self._view.status(what)
        if self._doors is not None:
            self._look_at_doors(self._doors)
        self._view.update()

    def _look_at_doors(self, doors: ReplayDoors) -> None:
        self._counts.add_up(door.said for door in doors.doors)
        stored = self._host.stored_seq()
        self._counts.stored = max(self._counts.stored, sum(stored.get(door.entry.boot, 0) for door in doors.doors))
        for door in doors.doors:
            told = str(door.said.get("fault") or "")
            if door.said.get("policies") == 0:
                told = "control has no policy in force, so every call is refused"
            if told and told not in self._told:
                self._told.add(told)
                self._view.tell(told)

    def _say_how_to_go_on(self) -> None:
        progress, lines = self._progress, self._counts.lines
        with contextlib.suppress(OperatorFault):  # the way to go on says it
            self._known = self._known or not progress.settle()
        done = progress.lines_done()
        words = f"{called_as()} replay {shlex.quote(self._args.file)} --resume{home_words(self._home)}"
        where = f"behind line {done:,} of {lines:,}" if self._counts.doors == 1 else f"with {done:,} of {lines:,} lines called"
        if not progress.run.doors:
            where = "before the first call"
        elif not self._known:
            where = "before it is known how many lines were called"
        elif done == lines:
            where = f"with all {lines:,} lines called, before everything was known to be stored"
        print(f"wardline: stopped {where}; to go on: {words}", file=sys.stderr)
