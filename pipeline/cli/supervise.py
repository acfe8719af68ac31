"""Children, each in a session of its own: started in order, started again when they die, stopped in reverse order.

A child tells that it is ready by its run file. Whatever it prints goes to `log/NAME.log`. However this process ends, its
children end too: they watch it (`schemas.process.leave_with_parent`).
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import OPERATOR, last_line, private_dir, read_run_file, rotate

TICK_S: Final = 0.1
START_S: Final = 90.0
"""How long a child may take until it is ready for the first time, its own restarts included."""

STEADY_S: Final = 60.0
"""Whoever has lived this long starts with a clean record when it dies."""

DELAY_FIRST_S: Final = 0.5
DELAY_MAX_S: Final = 15.0
DELAY_READY_MAX_S: Final = 1.0
"""The same for a child that was ready before it died: it does its work between its deaths, so each second without it counts."""

LOOP_DEATHS: Final = 5
"""Deaths within STEADY_S that are called a crash loop."""

AGAIN: Final = 75
"""Exit code of a process that wants to be started again at once."""

SAME_SIGNAL_S: Final = 0.5
"""A terminal and a wrapper may both pass one Ctrl-C on; what comes this soon is no second one."""

LOG_LOOK_S: Final = 5.0


@dataclass(slots=True)
class Child:
    """One process to keep alive."""

    name: str
    command: list[str]
    """The words behind `wardline`."""
    stage: int
    """Stages start in order and stop in reverse order; within one, all at once."""
    stop_s: float
    """How long it may take to stop; then it is killed."""
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = False
    was_ready: bool = False
    """In any of its lives."""
    is_ready: bool = False
    """In this one, as far as we have seen."""
    started: float = 0.0
    due: float = 0.0
    delay: float = 0.0
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=LOOP_DEATHS))


def command_of(child: Child) -> list[str]:
    """What is executed. -P: a current folder that happens to have a `schemas` or `ext` in it must not lend us its modules."""
    return [sys.executable, "-P", "-m", "pipeline.cli.main", *child.command]


class Supervisor:
    """Keeps children alive until a signal, an unrecoverable start, or `forced` ends it."""

    def __init__(self, home: Home, children: Iterable[Child], say: Callable[[str], None], *, logged: bool = True) -> None:
        """`say` gets one line for each thing that an operator should know; with `logged` off, children print where we do."""
        self.children = list(children)
        self._home = home
        self._say = say
        self._logged = logged
        self._signals: list[float] = []
        self._looked = 0.0

    def run(self, state: Callable[[str], None]) -> int:
        """Start, keep, stop; returns the exit code. `state` is told `starting`, `ready` and `stopping`.

        Raises OperatorFault naming the child that does not start and what it said last.
        """
        if self._logged:
            private_dir(self._home.log)
        before = [(number, signal.signal(number, self.signalled)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        try:
            state("starting")
            started = all(self._start(stage) for stage in sorted({child.stage for child in self.children}))
            if started:
                state("ready")
                while not self._asked():
                    self._tick()
                    time.sleep(TICK_S)
            state("stopping")
            return 0 if self._stop() else 1
        except OperatorFault:
            state("stopping")
            self._stop()
            raise
        finally:
            self._kill(self.children)
            for number, handler in before:
                signal.signal(number, handler)

    def signalled(self, *_: object) -> None:
        """One Ctrl-C: stop. Another: by force."""
        now = time.monotonic()
        if not self._signals or now - self._signals[-1] > SAME_SIGNAL_S:
            self._signals.append(now)

    def _asked(self) -> bool:
        return bool(self._signals)

    def _forced(self) -> bool:
        return len(self._signals) > 1

    # -- starting ----------------------------------------------------------------------------------------------------

    def _start(self, stage: int) -> bool:
        """Start a stage and wait until it is ready; False when a signal came first."""
        group = [child for child in self.children if child.stage == stage]
        for child in group:
            child.wanted = True
        deadline = time.monotonic() + START_S
        while not self._asked():
            self._tick()
            if all(self._ready(child) for child in group):
                return True
            if time.monotonic() > deadline:
                late = next(child for child in group if not child.was_ready)
                raise OperatorFault(f"{late.name} is not ready after {START_S:.0f} s{self._last_words(late)}")
            time.sleep(TICK_S)
        return False

    def _ready(self, child: Child) -> bool:
        if child.process is None:
            return False
        said = read_run_file(self._home.run_file(child.name))
        if said is not None and said["pid"] == child.process.pid and said.get("state") == "ready":
            child.was_ready = child.is_ready = True
        return child.was_ready

    def _spawn(self, child: Child) -> None:
        environment = os.environ | {"WARDLINE_PARENT": str(os.getpid())}
        output = self._open_log(child) if self._logged else None
        try:
            child.process = subprocess.Popen(
                command_of(child), env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        except OSError as fault:  # no memory or no process left: that passes, and whoever lives goes on
            child.due = time.monotonic() + DELAY_MAX_S
            self._say(f"{child.name} cannot be started: {fault.strerror}; trying again in {DELAY_MAX_S:.0f} s")
        finally:
            if output is not None:
                os.close(output)
        child.started, child.is_ready = time.monotonic(), False

    def _open_log(self, child: Child) -> int:
        path = self._log(child)
        rotate(path)
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as fault:  # a full disk: better a process without a log than a log without a process
            self._say(f"{path}: cannot be opened: {fault.strerror}")
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    # -- keeping -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        for child in self.children:
            if child.process is None:
                if child.wanted and now >= child.due:
                    self._spawn(child)
            elif child.process.poll() is not None:
                self._died(child, now)
            elif not child.is_ready:
                self._ready(child)
        if self._logged and now - self._looked > LOG_LOOK_S:
            self._looked = now
            for child in self.children:
                rotate(self._log(child))

    def _died(self, child: Child, now: float) -> None:
        assert child.process is not None
        code = child.process.returncode
        child.process = None
        if not child.wanted:
            return
        if code == OPERATOR and not child.was_ready:
            raise OperatorFault(f"{child.name} does not start{self._last_words(child)}")
        if now - child.started > STEADY_S:
            child.delay = 0.0
            child.deaths.clear()
        child.deaths.append(now)
        if code == AGAIN and len(child.deaths) < LOOP_DEATHS:
            child.due = now
        else:
            longest = DELAY_READY_MAX_S if child.is_ready else DELAY_MAX_S
            child.delay = min(longest, max(DELAY_FIRST_S, 2 * child.delay))
            child.due = now + child.delay
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if len(child.deaths) == LOOP_DEATHS and now - child.deaths[0] < STEADY_S:
            how = f"keeps dying ({LOOP_DEATHS} times in {now - child.deaths[0]:.0f} s), last it {how}"
        self._say(f"{child.name} {how}{self._last_words(child)}; starting it again in {max(0.0, child.due - now):.1f} s")

    def _log(self, child: Child) -> Path:
        return self._home.log / f"{child.name}.log"

    def _last_words(self, child: Child) -> str:
        """What the child printed last, as the end of a sentence."""
        line = last_line(self._log(child)) if self._logged else ""
        return f": {line.removeprefix('wardline: ')}" if line else ""

    # -- stopping ----------------------------------------------------------------------------------------------------

    def _stop(self) -> bool:
        """Stop in reverse order; what is below still lives and is kept alive meanwhile. False when it had to be forced."""
        for stage in sorted({child.stage for child in self.children}, reverse=True):
            group = [child for child in self.children if child.stage == stage]
            for child in group:
                child.wanted = False
                if child.process is not None and child.process.poll() is None:
                    child.process.send_signal(signal.SIGTERM)
                    child.process.send_signal(signal.SIGCONT)  # one that is stopped could not hear
            begun = time.monotonic()
            while any(child.process is not None for child in group):
                self._tick()
                if self._forced():
                    self._say("forced: what is not stored yet stays in the outbox for the next start")
                    return False
                late = [c for c in group if c.process is not None and time.monotonic() - begun > c.stop_s]
                for child in late:
                    self._say(f"{child.name} does not stop within {child.stop_s:.0f} s and is killed")
                self._kill(late)
                time.sleep(TICK_S)
        return True

    def _kill(self, children: Iterable[Child]) -> None:
        alive = [child for child in children if child.process is not None]
        for child in alive:
            child.wanted = False
            assert child.process is not None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)  # its session, so what it started goes with it
        for child in alive:
            assert child.process is not None
            child.process.wait()
            child.process = None
