"""Faults while calls are replayed: who is killed or stopped when, and how long nothing moved."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from schemas.process import read_run_file
from tests.support.home import Wardline, wait_until
from tests.support.kafka import Kafka

REPLAY_S = 420.0

Fault = Callable[[], None]


def kill(home: Wardline, name: str) -> Fault:
    """kill -9; whoever supervises it starts it again. Passes when it does not live just now."""

    def act() -> None:
        said = read_run_file(home.home.run_file(name))
        if said is not None and said["alive"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(said["pid"]), signal.SIGKILL)

    return act


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """SIGSTOP around the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def stop_for(home: Wardline, name: str, seconds: float) -> Fault:
    """SIGSTOP, and SIGCONT after a while; one that is just being started again is waited for."""

    def act() -> None:
        wait_until(lambda: (read_run_file(home.home.run_file(name)) or {}).get("alive"), 60, lambda: f"{name} lives")
        with _stopped(home.pid(name)):
            time.sleep(seconds)

    return act


def stop_in_insert(home: Wardline, name: str, seconds: float) -> Fault:
    """Stop a worker while its insert is under way: the store is held for a moment, so that the insert hangs in it."""

    def act() -> None:
        with contextlib.ExitStack() as worker:
            with _stopped(home.pid("store")):
                time.sleep(1.0)
                worker.enter_context(_stopped(home.pid(name)))
            time.sleep(seconds)

    return act


def kafka_down(kafka: Kafka, seconds: float) -> Fault:
    """kill -9 of the broker, which comes back after a while."""

    def act() -> None:
        kafka.kill()
        time.sleep(seconds)
        kafka.start()

    return act


def kafka_stopped(kafka: Kafka, seconds: float) -> Fault:
    """SIGSTOP of the broker, and SIGCONT after a while."""

    def act() -> None:
        kafka.pause()
        try:
            time.sleep(seconds)
        finally:
            kafka.go_on()

    return act


class Movement:
    """Watches how many records are in the store; `worst` is the longest time without a new one, in seconds."""

    def __init__(self, home: Wardline) -> None:
        self._home = home
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.worst = 0.0
        self.stored = 0

    def _look(self) -> None:
        moved = time.monotonic()
        while not self._stop.wait(0.25):
            try:
                count = int(self._home.sql("SELECT count() FROM records")[0][0])
            except Exception:  # the store may be down just now, which is a time without movement like any other
                count = self.stored
            now = time.monotonic()
            if count > self.stored:
                self.stored, moved = count, now
            self.worst = max(self.worst, now - moved)

    def __enter__(self) -> "Movement":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)


@contextlib.contextmanager
def replaying(home: Wardline, file: Path, rate: int, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A replay at a rate, beside what the block does; at the end of the block it must end well."""
    process = home.popen("replay", str(file), "--rate", str(rate), *words)
    wait_until(lambda: any(home.home.hosts.glob("replay-*/doors/*/*.seg")), 60, lambda: f"calls flow: {home.said('replay')}")
    yield process
    code = process.wait(REPLAY_S)
    assert code == 0, f"the replay ended with {code}: {home.said('replay')}"


def while_replaying(
    home: Wardline, file: Path, rate: int, faults: Sequence[Fault], *, every_s: float, rounds: int | None = None
) -> None:
    """Replay a file; while it runs, cause one fault after another, so many rounds of them (None: until it is over)."""
    caused = 0
    with replaying(home, file, rate) as process:
        while process.poll() is None and (rounds is None or caused < rounds * len(faults)):
            time.sleep(every_s)
            if process.poll() is None:
                faults[caused % len(faults)]()
                caused += 1
    assert caused >= len(faults), f"the replay was over after {caused} faults"
