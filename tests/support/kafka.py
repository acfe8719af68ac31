"""A real Apache Kafka for one test or module, by the script that `make kafka` runs."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import pytest

from tests.support.data import REPOSITORY

RUN = REPOSITORY / "deploy" / "kafka" / "run.py"
NO_JAVA = "Java and Maven are not here"
START_S = 60.0


def have_java() -> bool:
    """Whether a real Kafka can run here."""
    return shutil.which("java") is not None and shutil.which("mvn") is not None


def need_java() -> None:
    """Skip where a real Kafka cannot run."""
    if not have_java():
        pytest.skip(NO_JAVA)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Kafka:
    """A single node on fixed ports, so that it comes back under its address; its data is in `folder`.

    The process watches nobody: use it as a context manager, which ends it whatever the test does.
    """

    def __init__(self, folder: Path) -> None:
        need_java()
        self.folder = folder
        self.port = free_port()
        self.controller = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT for clients."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> "Kafka":
        """Start and wait until it listens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "kafka.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(RUN), "--port", str(self.port), "--controller-port", str(self.controller),
                 "--data", str(self.folder / "data"), "--heap", "512m"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.kill()
        raise AssertionError(f"kafka does not start: {log.read_text()[-2000:]}")

    def _signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """End it in an orderly way."""
        assert self.process is not None
        self._signal(signal.SIGTERM)
        self.process.wait(60)
        self.process = None

    def kill(self) -> None:
        """End it at once, if it lives."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self._signal(signal.SIGKILL)
        self.process.wait(30)
        self.process = None

    def pause(self) -> None:
        """Stop it where it is (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> "Kafka":
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
