"""The process `wardline control`: opens the journal, serves the API, publishes, listens, looks at the home.

Exit codes: 0 after SIGTERM or SIGINT, 2 when somebody must put something right first (journal, key, topic, setting), 1 when a
part of it broke: the next start goes on from the journal.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Mapping
from typing import Any, Final

import uvloop
from aiohttp import web

from pipeline.shells.control.api import Api, said
from pipeline.shells.control.books import Books
from pipeline.shells.control.heard import Heard
from pipeline.shells.control.publish import Publisher
from pipeline.shells.control.serve import listen
from pipeline.shells.control.watch import Watch, facts_of
from schemas.config import Config
from schemas.control import PAUSE
from schemas.errors import OperatorFault, PeerFault, WardlineError
from schemas.home import Home
from schemas.limits import EMBEDDED_LOG_BYTES_MAX
from schemas.links import embedded_broker
from schemas.process import private_dir, take_or_fail, write_run_file
from schemas.telemetry import serve_metrics

log = logging.getLogger(__name__)

SAY_S: Final = 0.2
EXPIRE_S: Final = 1.0
RETIRE_S: Final = 60.0
"""How long all live entries may take to be published again before a key is retired."""

STOP_S: Final = 2.0
LAST_S: Final = 1.0
"""How long a stopping control tries to publish its last change. The next start does it otherwise."""


def run(home: Home, config: Config, *, metrics_port: int = 0) -> int:
    """Run control until SIGTERM or SIGINT; returns the exit code.

    Raises OperatorFault for a journal that another process holds, that is damaged or too old, and for a wrong key or setting.
    """
    lock = take_or_fail(private_dir(home.control) / "lock", "the journal of control")
    try:
        return uvloop.run(_run(home, config, metrics_port))
    finally:
        lock.release()


async def _run(home: Home, config: Config, metrics_port: int) -> int:
    return await _Control(home, config, metrics_port).main()


class _Control:
    def __init__(self, home: Home, config: Config, metrics_port: int) -> None:
        self._home = home
        self._config = config
        self._metrics_port = metrics_port
        self._stop = asyncio.Event()
        self._books = Books(home, live_bytes_max=EMBEDDED_LOG_BYTES_MAX if embedded_broker(config) else 0)
        self._publisher = Publisher(home, config, self._books)
        self._heard = Heard(home, config, self._books, self._publisher.send_again)
        self._watch = Watch(home, config, self._books)
        self._said: dict[str, Any] = {}
        self._fixed: dict[str, Any] = {"name": "control", "pid": os.getpid(), "address": "", "metrics": ""}

    async def main(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        private_dir(self._home.run)
        self._fixed["metrics"] = serve_metrics(self._metrics_port)
        self._say("starting")
        runner: web.AppRunner | None = None
        tasks: list[asyncio.Task[Any]] = []
        try:
            await self._books.open()
            self._books.changed = self._publisher.wake
            publishing = asyncio.create_task(self._publisher.run())
            tasks = [publishing, asyncio.create_task(self._say_all())]
            if not await self._first_change(publishing):
                return await self._end(tasks)
            api = Api(self._books, self._heard, self._watch, self._make, self._status)
            runner, address = await listen(api.app(), self._config.control, self._home.control_socket)
            self._fixed["address"] = address
            known = self._books.log
            log.info("control listens on %s, epoch %d, %d entries are live", address, known.epoch, known.live)
            tasks += [asyncio.create_task(job) for job in (self._heard.run(), self._watch.run(), self._expire())]
            return await self._end(tasks)
        finally:
            if runner is not None:  # first nobody asks any more, then what was made gets its chance to be published
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(runner.cleanup(), STOP_S)
                if self._stop.is_set() and not tasks[0].done():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._publisher.published(self._books.log.epoch), LAST_S)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=STOP_S)
            await self._books.close()
            self._home.control_socket.unlink(missing_ok=True)
            self._home.run_file("control").unlink(missing_ok=True)

    async def _first_change(self, publishing: "asyncio.Task[None]") -> bool:
        """An empty journal begins above what the topic has: wait until that was read. False when we are stopped first."""
        if not self._books.empty:
            await self._books.begin(0, 0)
            return True
        while self._books.empty and not self._stop.is_set() and not publishing.done():
            await asyncio.sleep(0.02)
        return not self._books.empty

    async def _end(self, tasks: "list[asyncio.Task[Any]]") -> int:
        """Wait for a signal, or for a part of us that fails; returns the exit code."""
        stopping = asyncio.create_task(self._stop.wait())
        broken = self._books.broken
        ends: list[asyncio.Future[Any]] = [stopping, broken, *tasks]
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if broken in done:
            log.error("control ends: the journal has failed in the middle of a change: %s", broken.result())
            return 1
        if stopping in done:
            self._say("stopping")
            return 0
        for task in tasks:
            if not task.done():
                continue
            fault = task.exception()
            log.error("control ends: %s", fault if isinstance(fault, WardlineError) else repr(fault))
            if isinstance(fault, OperatorFault):
                return 2
        return 1

    # -- changes -----------------------------------------------------------------------------------------------------

    async def _make(self, request: Mapping[str, Any], actor: str, request_id: str) -> dict[str, Any]:
        """Make a change that somebody asked for; returns once it is in the journal."""
        match request.get("do"):
            case "key-rotate":
                return await self._rotate(request, actor, request_id)
            case "key-retire":
                return await self._retire(request, actor, request_id)
        answer, _ = await self._books.change(request, actor=actor, request_id=request_id)
        return said(answer.first, answer.last, answer.result)

    async def _rotate(self, request: Mapping[str, Any], actor: str, request_id: str) -> dict[str, Any]:
        """A new key, on disk before it is announced by an entry that the old one signs. Both are accepted from then on."""
        if request.keys() != {"do"}:
            raise OperatorFault("`key-rotate` has no fields: control makes the key")
        key_id = self._books.keys.make()
        known = True
        try:
            public = self._books.keys.public(key_id)
            answer, known = await self._books.change(
                {"do": "key-rotate", "public": public}, actor=actor, request_id=request_id, asked=request
            )
        finally:
            if known:  # it was made before, or could not be made: nobody knows the new key
                self._books.keys.drop([key_id])
        return said(answer.first, answer.last, answer.result)

    async def _retire(self, request: Mapping[str, Any], actor: str, request_id: str) -> dict[str, Any]:
        """An old key goes once nothing that is live needs it: signed again, published again, and only then removed."""
        if not await self._books.made(request, request_id):
            self._books.log.change(request, now_ns=time.time_ns(), actor=actor)  # raises what it would raise
            try:
                count = await self._books.sign_again()
                await asyncio.wait_for(self._publisher.all_again(), RETIRE_S)
            except TimeoutError as fault:
                raise PeerFault("kafka does not take the entries that were signed again; the key is not retired") from fault
            log.info("%d live entries were signed again", count)
        answer, _ = await self._books.change(request, actor=actor, request_id=request_id)
        return said(answer.first, answer.last, answer.result)

    async def _expire(self) -> None:
        while True:
            due = self._books.log.next_expiry_s()
            now = time.time()
            if due and due <= now:
                await self._expire_now()
            await asyncio.sleep(min(EXPIRE_S, max(0.01, due - now)) if due else EXPIRE_S)

    async def _expire_now(self) -> None:
        try:
            await self._books.expire()
        except PeerFault as fault:  # no room: what should have ended stays revoked
            log.warning("%s", fault)
            await asyncio.sleep(EXPIRE_S)

    # -- words -------------------------------------------------------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        books, publisher = self._books, self._publisher
        policy, pause = books.log.policy, books.log.get(PAUSE)
        return {
            "state": self._said.get("state", "starting"), "epoch": books.log.epoch, "published": publisher.epoch,
            "counter": publisher.counter, "digest": books.log.digest().hex(), "live": books.log.live,
            "live_bytes": books.log.live_bytes, "problem": publisher.problem,
            "keys": [entry.name for entry in books.log.entries("key")], "key": books.keys.key_id.hex(),
            "policy_digest": policy.digest if policy else "", "policy_problem": facts_of(self._watch.problem),
            "paused": dict(pause.value or {}) if pause else None, "hosts": dict(self._heard.figures()),
        }  # fmt: skip

    async def _say_all(self) -> None:
        while True:
            self._say("ready" if self._publisher.ready.is_set() and self._fixed["address"] else "starting")
            await asyncio.sleep(SAY_S)

    def _say(self, state: str) -> None:
        books, publisher = self._books, self._publisher
        policy = books.log.policy
        fields = {
            **self._fixed, "state": state, "epoch": books.log.epoch, "published": publisher.epoch, "counter": publisher.counter,
            "digest": books.log.digest().hex(), "live": books.log.live, "problem": publisher.problem,
            "policy_digest": policy.digest if policy else "", "policy_problem": facts_of(self._watch.problem),
        }  # fmt: skip
        if fields != self._said:
            self._said = fields
            with contextlib.suppress(OSError):  # a full disk: the figures are late, the journal is not
                write_run_file(self._home.run_file("control"), fields)
