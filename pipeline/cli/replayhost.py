"""The enforcer host that a replay starts for itself: started again when it dies, stopped when the run ends."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pipeline.cli.processes import SLOTS_MAX
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import OPERATOR, Lock, last_line, private_dir, read_run_file, rotate

DELAY_FIRST_S: Final = 0.2
DELAY_MAX_S: Final = 5.0
HELD_S: Final = 10.0
"""How long a name may be held by the host of a replay that was killed: it leaves within two seconds."""

STOP_S: Final = 40.0
"""A host waits 30 s for everything to be stored."""


class ReplayHost:
    """`wardline enforce --name replay-N` as our child. `tick` is called some ten times a second."""

    def __init__(self, home: Home, args: argparse.Namespace, say: Callable[[str], None], preferred: str = "") -> None:
        """Take the first free name, or `preferred` where a door of that host is to be adopted by it.

        Raises OperatorFault when every name is held.
        """
        self._home = home
        self._say = say
        self.name, self._claim = self._claim_name(preferred)
        self._command = ["enforce", "--home", str(home.root), "--name", self.name, "--no-adopt"]
        if args.kafka:
            self._command += ["--kafka", args.kafka]
        self._process: subprocess.Popen[bytes] | None = None
        self._due = 0.0
        self._delay = 0.0
        self._since = time.monotonic()
        self.ready = False
        """Whether it was ready once: then its doors have a board, which says for itself whether it is fresh."""
        self._said: dict[str, Any] = {}

    def _claim_name(self, preferred: str) -> tuple[str, Lock]:
        # our own claim beside the host's lock: between two hosts of ours nobody else takes the name
        names = [f"replay-{n}" for n in range(1, SLOTS_MAX + 1)]
        for name in [preferred, *names] if preferred in names else names:
            claim = Lock(self._home.replay / f"{name}.lock")
            if claim.take():
                if name == preferred or self._is_free(name):
                    return name, claim
                claim.release()
        raise OperatorFault(f"all {SLOTS_MAX} names `replay-N` of `{self._home.root}` are held")

    def _is_free(self, name: str) -> bool:
        lock = Lock(self._home.run / f"{name}.lock")
        free = lock.take()
        lock.release()
        return free

    def tick(self) -> None:
        """Start it, or start it again. Raises OperatorFault with its last words when somebody must put something right."""
        now = time.monotonic()
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                found = read_run_file(self._home.run_file(self.name)) or {}
                ours = found.get("pid") == self._process.pid
                self._said = found if ours else {}
                self.ready = self.ready or self._said.get("state") == "ready"
                self._delay = 0.0 if self._said.get("state") == "ready" else self._delay
                return
            self._process, self._said, self._since = None, {}, now
            words = last_line(self._log()).removeprefix("wardline: ")
            if code == OPERATOR and self._is_free(self.name):
                raise OperatorFault(f"host {self.name} does not start: {words}")
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}: {words}"
            self._delay = min(DELAY_MAX_S, max(DELAY_FIRST_S, 2 * self._delay))
            self._due = now + self._delay
            self._say(f"host {self.name} {how}; it is started again")
        if now < self._due:
            return
        if self._is_free(self.name):
            self._spawn()
        elif now - self._since > HELD_S:
            raise OperatorFault(f"host {self.name} is held by process {Lock(self._home.run / f'{self.name}.lock').holder()}")

    def _spawn(self) -> None:
        path = self._log()
        private_dir(path.parent)
        rotate(path)
        output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.cli.main", *self._command],
                env=os.environ | {"WARDLINE_PARENT": str(os.getpid())}, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(output)

    def _log(self) -> Path:
        return self._home.log / f"{self.name}.log"

    def why(self) -> str:
        """What it waits for until it is ready, as far as it says so; empty when it does not."""
        return str((self._said.get("control") or {}).get("why") or "")

    def stored_seq(self) -> dict[str, int]:
        """For each door of this host: the seq up to which everything is stored."""
        return dict(self._said.get("stored_seq", {}))

    def tidy(self) -> bool:
        """Whether nothing of this host waits on disk: no record that is not stored, and nothing stored that is not put away."""
        folder = self._home.host(self.name)
        return not any(folder.glob("outbox/*.box")) and not any(folder.glob("doors/????????????????/*.seg"))

    def stop(self, at_once: Callable[[], bool]) -> None:
        """Stop it: it waits until everything is stored, STOP_S at most. When `at_once()`, it is killed, which loses nothing."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_S
            while self._process.poll() is None:
                if at_once() or time.monotonic() > deadline:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._process.pid, signal.SIGKILL)
                    self._process.wait()
                    self._home.run_file(self.name).unlink(missing_ok=True)
                    break
                time.sleep(0.05)
        self._claim.release()
