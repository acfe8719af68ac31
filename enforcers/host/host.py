"""The process `wardline enforce`: seals, sends, obeys control for its doors, and says how far it is.

It holds the frame key, no door does. Started alone or by a supervisor, it first makes its state whole (checkpoint, boxes, dead
doors) with the code that runs all the time, and is `ready` once its doors may decide and listen, or say why they do not.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import uvloop
from prometheus_client import Gauge

from enforcers.host.acks import Acks, Doors
from enforcers.host.bundles import Finder, Shelf
from enforcers.host.clients import Broker
from enforcers.host.engine import Engine
from enforcers.host.feed import Feed
from enforcers.host.keeper import Keeper
from enforcers.host.link import Link
from ext.board import BoardWriter
from schemas.config import Config
from schemas.errors import OperatorFault, WardlineError
from schemas.home import Home
from schemas.keys import own_key
from schemas.process import Lock, private_dir, write_run_file
from schemas.records import make_boot
from schemas.telemetry import serve_metrics

log = logging.getLogger(__name__)

STOP_S: Final = 30.0
"""How long a stopping host waits for `stored`; then the outbox is kept for the next start."""

SAY_S: Final = 0.2
SAY_MOVING_S: Final = 0.5
"""How often the run file is written while nothing but its figures changes, and not everything was or is stored."""

_MOVING: Final = dict.fromkeys(("spooled", "sealed", "sent", "stored", "outbox_bytes", "spool_bytes", "stored_seq"))

BUSY_RECORDS: Final = 500
BUSY_ROUNDS: Final = 4
"""Where so many records come in `seal_ms`, the next cut is made after up to so many times as long. As many more records then
share its own cost: a sync of the disk, and for each partition a signature, a message and a frontier."""

ADOPT_S: Final = 2.0
ADOPT_AFTER: Final = {"replay": 2, "enforce": 8}
"""Rounds of ADOPT_S that a host must have been without a holder: a supervisor starts its own again well before."""

LOCK_WAIT_S: Final = 20.0

LAG = Gauge("wardline_host_records", "Records since start", ["stage"])
DISK = Gauge("wardline_host_bytes", "Bytes on disk", ["what"])


def run(
    home: Home, config: Config, *, name: str, metrics_port: int = 0, adopt: bool = True, doors: int = 0, egress_port: int = 0
) -> int:  # fmt: skip
    """Run one enforcer host until SIGTERM or SIGINT, with so many egress doors of its own; returns the exit code.

    What its doors obey comes from control. Raises OperatorFault when the host is held by another process, its state is
    damaged, or the doors' port is not to be had.
    """
    keeper = Keeper(home, config, name, doors=doors, port=egress_port)
    return uvloop.run(_Host(home, config, name, metrics_port, adopt, keeper).main())


class _Host:
    def __init__(
        self, home: Home, config: Config, name: str, metrics_port: int, adopt: bool, keeper: Keeper
    ) -> None:  # fmt: skip
        self._home = home
        self._config = config
        self._name = name
        self._shelf = Shelf(home.host(name) / "bundle")
        self._feed: Feed | None = None
        self._metrics_port = metrics_port
        self._adopt = adopt
        self._keeper = keeper
        self._boot = _make_boot()
        self._engines: dict[str, Engine] = {}
        self._unheld: dict[str, int] = {}
        self._stop = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._said: dict[str, Any] = {}
        self._said_at = 0.0

    async def main(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        private_dir(self._home.run)
        metrics = serve_metrics(self._metrics_port)
        self._fixed = {"name": self._name, "pid": os.getpid(), "address": metrics, "metrics": metrics}
        self._say("starting")
        lock = await self._own_lock()
        if lock is None:
            self._home.run_file(self._name).unlink(missing_ok=True)
            return 0
        await self._keeper.bind()
        self._engines[self._name] = self._engine(self._name, lock)
        own = self._engines[self._name]
        board = BoardWriter(str(self._home.board(self._name)), self._boot)
        broker = Broker(self._home, self._config)
        feed = self._feed = Feed(
            self._home, self._config, broker, name=self._name, key=own.public, board=board, hosts=lambda: list(self._engines)
        )  # fmt: skip
        finder = Finder(broker, self._shelf, lambda: feed.obey, wake=feed.wake, refused=feed.refuse_bundle)
        doors = Doors(self._home.host(self._name) / "doors", own.ended)
        acks = Acks(broker, feed, doors, boot=self._boot, sign=own.sign, lag=own.lag)
        link = Link(self._home, self._config, broker, feed, lambda: list(self._engines.values()))
        jobs = [
            finder.run(), acks.look(), acks.publish(), link.send(), link.hear(), self._seal(link), self._keeper.run(),
            self._say_all(),
        ]  # fmt: skip
        if self._adopt:
            jobs.append(self._adopt_all())
        obeying = [asyncio.create_task(job) for job in (feed.run(), feed.keep())]
        tasks = [*obeying, *(asyncio.create_task(job) for job in jobs)]
        log.info("host %s boot %016x joins at epoch %d", self._name, self._boot, feed.obey.kept_epoch)
        stopping = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        code = 0
        if stopping in done:
            self._say("stopping")
            await self._keeper.stop()  # first: what they record last is sealed and stored below
            if await self._last_words(tasks):
                log.info("everything is stored")
            else:
                log.warning("not everything is stored after %d s: the outbox is kept for the next start", STOP_S)
            # nobody tells the doors anything from now on, so they decide nothing more
            for task in obeying:
                task.cancel()
            board.fresh(0)
            await acks.last_word()
        await self._keeper.stop()
        for task in tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                # a crash of any part is a crash of the host: the next start makes it whole from disk
                fault = task.exception()
                log.error("the host ends: %s", fault if isinstance(fault, WardlineError) else repr(fault))
                code = 2 if isinstance(fault, OperatorFault) else 1
            elif task.done() and not self._stop.is_set():
                log.error("the host ends: a part of it ended without saying why")
                code = code or 1
            task.cancel()
        await asyncio.wait(tasks, timeout=10)
        board.close()
        self._thread.shutdown()
        for engine in self._engines.values():
            engine.close()
        self._home.run_file(self._name).unlink(missing_ok=True)
        return code

    async def _own_lock(self) -> Lock | None:
        """Our host folder; an adopter that holds it lets go when it sees `wanted`."""
        folder = private_dir(self._home.host(self._name))
        lock, wanted = Lock(folder / "lock"), folder / "wanted"
        deadline = time.monotonic() + LOCK_WAIT_S
        while not lock.take():
            wanted.touch(0o600)
            if self._stop.is_set():
                return None
            if time.monotonic() > deadline:
                raise OperatorFault(f"host `{self._name}` is held by process {lock.holder()} (`{lock.path}`)")
            await asyncio.sleep(0.1)
        wanted.unlink(missing_ok=True)
        return lock

    def _engine(self, name: str, lock: Lock) -> Engine:
        # each engine numbers its lanes from 1: one of the same host that we adopt a second time must not use the first's lanes
        boot = self._boot if name == self._name else _make_boot()
        return Engine(self._home, self._config, name, boot, own_key(self._home, "hosts", name), lock)

    async def _seal(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        full = self._config.enforcer.frame_records * self._config.kafka.partitions * 3 // 4
        rounds = 1
        while True:
            busiest = 0
            for engine in list(self._engines.values()):
                if self._engines.get(engine.name) is not engine:
                    continue  # it was given back, and closed, while another one was sealed
                if engine.rests():
                    continue  # nothing is worth the way to the thread and back
                cut = await loop.run_in_executor(self._thread, engine.step)
                if cut is not None:
                    engine.commit(cut)
                    busiest = max(busiest, cut.records)
            if busiest:
                link.wake.set()
            each = busiest / rounds
            rounds = 1
            if busiest >= full:
                continue
            if each >= BUSY_RECORDS:  # so many rounds that the next cut is large, and not full
                rounds = max(1, min(BUSY_ROUNDS, int(full * 0.75 / each)))
            for _ in range(rounds):
                await asyncio.sleep(self._config.enforcer.seal_ms / 1000)
                if self._stop.is_set():
                    break

    async def _last_words(self, tasks: list["asyncio.Task[None]"]) -> bool:
        """Wait until everything is stored, or STOP_S, or until a part of us fails."""
        deadline = time.monotonic() + STOP_S
        # two rounds of sealing: what a door wrote last is read in the first, its end is seen in the second
        await asyncio.sleep(2 * self._config.enforcer.seal_ms / 1000)
        while time.monotonic() < deadline and not any(task.done() for task in tasks):
            if all(engine.quiet() for engine in self._engines.values()):
                return True
            await asyncio.sleep(0.05)
        return all(engine.quiet() for engine in self._engines.values())

    async def _adopt_all(self) -> None:
        """Take over hosts that nobody holds and that have something left; let go when done or when the owner is back."""
        while True:
            await asyncio.sleep(ADOPT_S)
            for name, engine in list(self._engines.items()):
                if name == self._name:
                    continue
                wanted = (self._home.host(name) / "wanted").exists()
                if wanted or engine.drained():
                    del self._engines[name]
                    await asyncio.get_running_loop().run_in_executor(self._thread, engine.close)
                    # the owner gets its rounds, and an owner that died meanwhile does not want it for ever
                    self._unheld.pop(name, None)
                    (self._home.host(name) / "wanted").unlink(missing_ok=True)
                    log.info("host %s is %s", name, "wanted back" if wanted else "finished")
            for folder in sorted(self._home.hosts.iterdir()):
                if folder.name not in self._engines and _left(folder):
                    self._consider(folder.name)

    def _consider(self, name: str) -> None:
        lock = Lock(self._home.host(name) / "lock")
        if not lock.take():
            self._unheld.pop(name, None)
            return
        rounds = self._unheld[name] = self._unheld.get(name, 0) + 1
        if rounds < ADOPT_AFTER.get(name.partition("-")[0], ADOPT_AFTER["enforce"]):
            lock.release()
            return
        try:
            self._engines[name] = self._engine(name, lock)
        except OperatorFault as fault:
            lock.release()
            log.error("host %s cannot be adopted: %s", name, fault)
            return
        log.info("host %s is adopted: nobody holds it and it has records left", name)

    async def _say_all(self) -> None:
        ready = False
        while True:
            heard = self._feed is not None and self._feed.obey.state != "joining"
            ready = ready or (heard and self._keeper.settled)
            self._say("stopping" if self._stop.is_set() else "ready" if ready else "starting")
            await asyncio.sleep(SAY_S)

    def _say(self, state: str) -> None:
        said: dict[str, Any] = {**self._fixed, "state": state, "boot": f"{self._boot:016x}", **self._keeper.said()}
        if self._feed is not None:
            digest = self._feed.obey.policy
            said |= {"policy_digest": digest, "bundle": str(self._shelf.path(digest)) if digest else "", **self._feed.said()}
        engine = self._engines.get(self._name)
        if engine is not None:
            said |= engine.figures()
            said |= {"stored_seq": engine.stored_seq(), "full": engine.full, "living": engine.living()}
            said["adopted"] = {name: other.figures() for name, other in self._engines.items() if name != self._name}
            said["torn"] = [line for other in self._engines.values() for line in other.torn()]
            for stage in ("spooled", "sealed", "sent", "stored"):
                LAG.labels(stage).set(said[stage])
            for what in ("outbox_bytes", "spool_bytes"):
                DISK.labels(what).set(said[what])
        now = time.monotonic()
        if said == self._said or (
            now - self._said_at < SAY_MOVING_S and all(one.get("spooled") != one.get("stored") for one in (said, self._said))
            and {**said, **_MOVING} == {**self._said, **_MOVING}
        ):  # fmt: skip
            return
        self._said, self._said_at = said, now
        with contextlib.suppress(OSError):  # a full disk: the figures are late, the records are not
            write_run_file(self._home.run_file(self._name), said)


def _make_boot() -> int:
    return make_boot(int(time.time()), secrets.randbits(32))


def _left(folder: Path) -> bool:
    """Whether a host folder has records that are not stored: a box, or a door that is not finished."""
    return any(folder.glob("outbox/*.box")) or any(folder.glob("doors/????????????????/*.seg"))
