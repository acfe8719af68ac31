"""Control and its broker as real processes, a client of its API, and a reader of its topic that believes nothing unsigned.

`python -m tests.support.controlling HOME STEP` runs control and kills it with SIGKILL at a step of the first change that is
asked for (`STEPS`), as a loss of power would.
"""

import asyncio
import contextlib
import http.client
import importlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from schemas.errors import FrameFault
from schemas.follower import Beat, Follower
from schemas.home import Home
from schemas.keys import control_pins
from schemas.process import read_run_file
from tests.support.home import wait_until

START_S = 60.0
NOT_ROOT = "only root can become another user"

STEPS = (
    "asked", "before the transaction", "in the transaction", "before the commit", "behind the commit", "behind the log",
    "before the first send", "behind the first send", "before the head", "behind the head", "before the answer",
)  # fmt: skip
"""Where control can be killed in the middle of a change, in this order but for publishing, which goes on beside the head."""

BURY_SOON = "bury what was removed after a second"
"""No step: control does not wait for an hour before a removed key leaves the topic."""

DISK_FAILS = "fail in the middle of a commit"
"""No step either: whether a change is made is not known."""

MADE_FROM = STEPS.index("behind the commit")
"""From here on the change is made."""


class Client:
    """Control's API over its unix socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(self, method: str, path: str, body: Any = None, *, timeout: float = 60) -> tuple[int, Any]:
        """(status, JSON). Raises OSError or HTTPException when the connection breaks."""
        link = http.client.HTTPConnection("control", timeout=timeout)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        link.sock = socket.socket(socket.AF_UNIX)
        try:
            link.sock.settimeout(timeout)
            link.sock.connect(f"/proc/self/fd/{folder}/{self.path.name}")
            link.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
            answer = link.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            os.close(folder)
            link.close()

    def get(self, path: str) -> Any:
        """GET that succeeds."""
        status, answer = self.ask("GET", path)
        assert status == 200, (path, status, answer)
        return answer

    def change(self, do: str, *, request_id: str = "", **fields: Any) -> Any:
        """A change that succeeds."""
        status, answer = self.ask("POST", "/changes", {"id": request_id or str(uuid.uuid4()), "do": do, **fields})
        assert status == 200, (do, status, answer)
        return answer

    def refused(self, do: str, **fields: Any) -> str:
        """What control says of a change that it refuses."""
        status, answer = self.ask("POST", "/changes", {"id": str(uuid.uuid4()), "do": do, **fields})
        assert status >= 400, (do, answer)
        return str(answer["error"])


class Controlled:
    """A home with a broker (embedded, unless `kafka` is given) and control in it."""

    def __init__(self, root: Path, *, kafka: str = "", config: str = "") -> None:
        self.home = Home(root)
        self.kafka = kafka
        self.topic = "wardline.control"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = (f'[kafka]\nservers = "{kafka}"\n' if kafka else "") + config
        self.home.config.write_text(text)
        self.client = Client(self.home.control_socket)
        self._living: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, role: str = "control", *, step: str = "", wait: bool = True) -> "subprocess.Popen[bytes]":
        """Start `broker` or `control`, the latter with a STEP to die at; returns when it is ready."""
        self.home.log.mkdir(mode=0o700, exist_ok=True)
        with (self.home.log / f"{role}.log").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.controlling", role, str(self.home.root), step],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=os.environ | {"WARDLINE_PARENT": str(os.getpid())},
            )  # fmt: skip
        self._living[role] = process
        if wait:
            self.wait_ready(role)
        return process

    def start_all(self) -> "Controlled":
        """A broker where none is given, and control."""
        if not self.kafka:
            self.start("broker")
        self.start()
        return self

    def wait_ready(self, role: str = "control") -> None:
        """Wait until the process that was started last says that it is ready."""
        process = self._living[role]

        def look() -> bool:
            assert process.poll() is None, f"{role} ended with {process.returncode}: {self.said(role)}"
            said = read_run_file(self.home.run_file(role))
            return said is not None and said["pid"] == process.pid and said["state"] == "ready"

        wait_until(look, START_S, lambda: f"{role} is ready; it said {self.said(role)}", every=0.02)

    def said(self, role: str = "control") -> str:
        """The end of what a process printed."""
        return (self.home.log / f"{role}.log").read_text(errors="replace")[-3000:]

    def kill(self, role: str = "control") -> None:
        """kill -9."""
        process = self._living.pop(role)
        process.kill()
        process.wait(60)

    def stop(self, role: str = "control") -> int:
        """SIGTERM; returns the exit code."""
        process = self._living.pop(role)
        process.terminate()
        return process.wait(60)

    def pids(self) -> dict[str, int]:
        """Who lives."""
        return {role: process.pid for role, process in self._living.items()}

    def __enter__(self) -> "Controlled":
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._living.values():
            process.kill()
            process.wait(60)

    # -- the topic ---------------------------------------------------------------------------------------------------

    def servers(self) -> str:
        """HOST:PORT of the broker."""
        said = read_run_file(self.home.run_file("broker"))
        return self.kafka or str((said or {})["address"])

    def pins(self) -> dict[bytes, bytes]:
        """The control keys that are pinned in this home."""
        return control_pins(self.home)

    def read(self, topic: str = "") -> list[Any]:
        """Every message of a topic, by default of the control log."""
        return asyncio.run(_messages(self.servers(), topic or self.topic))

    def follower(self, pins: dict[bytes, bytes] | None = None, *, strict: bool = False) -> tuple[Follower, Beat | None]:
        """Whoever joins now: reads the topic from its beginning to its end."""
        follower = Follower(pins or self.pins())
        follower._strict = strict
        follower.begin()
        found: Beat | None = None
        messages = self.read()
        for message in messages:
            with contextlib.suppress(FrameFault):
                taken = follower.take(message.value, at_end=message is messages[-1])
                found = taken if isinstance(taken, Beat) else found
        return follower, found

    def joined(self, *, seconds: float = 30, pins: dict[bytes, bytes] | None = None, strict: bool = False) -> Follower:
        """Whoever joins now and is synced, in `seconds`."""

        def look() -> Follower | None:
            follower, beat = self.follower(pins, strict=strict)
            return follower if beat is not None and beat.whole and follower.synced else None

        found = wait_until(look, seconds, lambda: f"a reader that joins is whole; control said {self.said()}", every=0.2)
        assert isinstance(found, Follower)
        return found


async def _messages(servers: str, topic: str) -> list[Any]:
    from pipeline.shells.control.topic import reader, to_end

    options = {"bootstrap_servers": servers, "client_id": "test"}
    async with reader(options, topic, wait_ms=20) as (consumer, place):
        return [message async for message in to_end(consumer, place)]


# -- the processes -----------------------------------------------------------------------------------------------------


def die() -> None:
    """As kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class _Base:
    """A connection that dies around its statements."""

    def __init__(self, inner: Any, here: Callable[[str], None]) -> None:
        self._inner = inner
        self._here = here

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def execute(self, statement: str, *more: Any) -> Any:
        if statement.startswith("COMMIT"):
            self._here("before the commit")
        done = self._inner.execute(statement, *more)
        if statement.startswith("INSERT INTO changes"):
            self._here("in the transaction")
        return done


def arm(step: str) -> None:
    """Have control die at a step of the first change that a client asks for."""
    from pipeline.shells.control import api, books, journal, publish

    run = importlib.import_module("pipeline.shells.control.run")
    armed: list[bool] = []
    sends: list[bool] = []

    def here(name: str) -> None:
        if armed and name == step:
            die()

    def wrap(owner: Any, name: str, before: str, behind: str) -> None:
        plain = getattr(owner, name)

        def wrapped(*args: Any, **named: Any) -> Any:
            here(before)
            done = plain(*args, **named)
            here(behind)
            return done

        setattr(owner, name, wrapped)

    make = run._Control._make

    async def made(self: Any, request: Any, actor: str, request_id: str) -> Any:
        armed.append(True)
        here("asked")
        return await make(self, request, actor, request_id)

    run._Control._make = made  # type: ignore[method-assign]
    connect = journal.Journal._connect

    def connected(self: Any) -> None:
        connect(self)
        self._base = _Base(self._base, here)

    journal.Journal._connect = connected  # type: ignore[method-assign]
    wrap(journal.Journal, "commit", "before the transaction", "behind the commit")
    wrap(books.Log, "apply", "", "behind the log")
    wrap(journal.Journal, "say_head", "before the head", "behind the head")
    wrap(api.web, "json_response", "before the answer", "")
    send = publish.Publisher._send

    async def sent(self: Any, producer: Any, session: Any, epochs: list[int], *, bundle: bool) -> None:
        here("before the first send")
        await send(self, producer, session, epochs[:1], bundle=bundle)
        if armed and not sends:
            sends.append(True)
            with contextlib.suppress(Exception):
                await session.room(1)
            here("behind the first send")
        await send(self, producer, session, epochs[1:], bundle=bundle)

    publish.Publisher._send = sent  # type: ignore[method-assign]


def main(role: str, root: str, step: str) -> int:
    """Run a process of a home."""
    from pipeline.shells import broker, control
    from schemas.config import load_config
    from schemas.errors import OperatorFault
    from schemas.process import leave_with_parent
    from schemas.telemetry import setup_logging

    leave_with_parent()
    home = Home(Path(root))
    setup_logging(role)
    if step == BURY_SOON:
        importlib.import_module("pipeline.shells.control.publish").TOMBSTONE_S = 1.0
    elif step == DISK_FAILS:
        journal = importlib.import_module("pipeline.shells.control.journal").Journal

        def commit(*_args: Any, **_named: Any) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        journal.commit = commit
    elif step:
        assert step in STEPS
        arm(step)
    try:
        return (broker if role == "broker" else control).run(home, load_config(home.config))
    except OperatorFault as fault:
        print(f"wardline: {fault}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
