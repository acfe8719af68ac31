"""The process `wardline work`: one slot, one Faust app, one exit code.

0 after SIGTERM or SIGINT: what was taken in is stored and committed. 75: start me again at once (another worker has our slot or
a partition, the embedded broker is a new one, the watchdog). 1: crashed. 2: somebody must put something right first.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import time
from typing import Any, Final

import pyarrow as pa

from pipeline.shells.worker import metrics
from pipeline.shells.worker.acks import Acks
from pipeline.shells.worker.app import WorkerApp, make_app
from pipeline.shells.worker.herald import Herald
from pipeline.shells.worker.pump import CRASH_EXIT, OPERATOR_EXIT, Pump
from pipeline.shells.worker.registry import Registry
from pipeline.shells.worker.scribe import Scribe
from pipeline.shells.worker.sink import Sink
from pipeline.shells.worker.watch import Watch
from pipeline.shells.worker.watchdog import Signs, Watchdog
from schemas.config import Config
from schemas.errors import OperatorFault, PeerFault, WardlineError
from schemas.home import Home
from schemas.keys import own_key
from schemas.links import embedded_broker, kafka_servers
from schemas.process import Lock, private_dir, read_run_file, take_or_fail, write_run_file
from schemas.telemetry import serve_metrics

log = logging.getLogger(__name__)

FINISH_S: Final = 4.0
"""How long a stopping worker waits for the store. What is not stored then is read again by the next start."""

SAY_LAST_S: Final = 1.0
STOP_S: Final = 3.5
INSERT_GRACE_S: Final = 10
SAY_S: Final = 0.5
LOOK_S: Final = 0.1

GC_THRESHOLDS: Final = (20_000, 20, 50)
"""Objects that come into being before young ones are looked through, and so on. Detectors keep many small ones, none of which
point in a circle: with Python's own 700 the search for such took half of a detector's time."""

SWITCH_S: Final = 0.0005
"""How long a thread that computes keeps the others waiting: a frame goes from thread to thread, and with Python's own 5 ms each
step may wait for a detector."""

PAGES_KEPT_MS: Final = 10_000
"""Unused memory goes back to the system after so long."""


def run(home: Home, config: Config, *, slot: str, metrics_port: int = 0) -> int:
    """Run the worker of `slot` (`work-1`) until SIGTERM or SIGINT; returns the exit code.

    Raises OperatorFault when another worker of this home reads the embedded broker, or a key or security file is wrong.
    """
    for chatty, level in (("faust", logging.WARNING), ("mode", logging.WARNING),
                          ("clickhouse_connect", logging.ERROR), ("urllib3", logging.ERROR)):  # fmt: skip
        logging.getLogger(chatty).setLevel(level)
    _prepare_arrow()
    sys.setswitchinterval(SWITCH_S)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    lock: Lock | None = None
    if embedded_broker(config):
        # it cannot rebalance, so a second worker would read everything again and fence the first
        lock = take_or_fail(private_dir(home.run) / "embedded-worker.lock", "the embedded broker's one worker")
    try:
        return asyncio.run(_run(home, config, slot, metrics_port))
    finally:
        if lock is not None:
            lock.release()


def _prepare_arrow() -> None:
    """Keep pages that batches are made in for the next ones: getting fresh ones took half of the time of a batch."""
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
        pa.jemalloc_set_decay_ms(PAGES_KEPT_MS)
    # NumPy is imported at the first conversion, which the first frame would wait for
    pa.array([0]).to_numpy()


async def _run(home: Home, config: Config, slot: str, metrics_port: int) -> int:
    worker = _Worker(home, config, slot, metrics_port)
    code = await worker.main()
    home.run_file(slot).unlink(missing_ok=True)
    if not worker.clean:
        # something hangs, an insert in its thread or a task of Faust's, and Python would wait for it; none of it was
        # acknowledged, so the next start does it again
        logging.shutdown()
        os._exit(code)
    return code


class _Worker:
    def __init__(self, home: Home, config: Config, slot: str, metrics_port: int) -> None:
        self._home = home
        self._config = config
        self._slot = slot
        self._metrics_port = metrics_port
        self._key = own_key(home, "workers", slot)
        self._stop = asyncio.Event()
        self._app: WorkerApp | None = None
        self._pump: Pump | None = None
        self._registry: Registry | None = None
        self._scribe: Scribe | None = None
        self._acks: Acks | None = None
        self._looks: Watch | None = None
        self._beat_at = 0.0
        self._said: dict[str, Any] = {}
        self.clean = True
        """Whether nothing hangs when `main` returns."""

    async def main(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        private_dir(self._home.run)
        address = serve_metrics(self._metrics_port)
        self._fixed = {"name": self._slot, "pid": os.getpid(), "address": address, "metrics": address}
        self._say("starting")
        servers = await self._servers()
        if servers is None:
            return 0
        try:
            return await self._work(servers)
        except OperatorFault as fault:
            log.error("%s", fault)
            self.clean = False
            return OPERATOR_EXIT

    async def _servers(self) -> str | None:
        """Where the broker is, once it is up; None when we are stopped first."""
        while not self._stop.is_set():
            try:
                return kafka_servers(self._home, self._config)
            except PeerFault:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), SAY_S)
        return None

    def _broker(self) -> object:
        """What changes when the embedded broker is another one; None while it is not up, and for a real one."""
        if not embedded_broker(self._config):
            return None
        said = read_run_file(self._home.run_file("broker"))
        if said is None or not said["alive"] or said.get("state") != "ready":
            return None
        return said["pid"], said["address"]

    async def _work(self, servers: str) -> int:
        herald = Herald(self._config, servers=servers, slot=self._slot, sign=self._key.sign)
        registry = self._registry = Registry(self._home, self._config, slot=self._slot, servers=servers)
        books = Sink(self._home, self._config, slot=self._slot)
        scribe = self._scribe = Scribe(books, whole=registry.whole)
        registry.tell(scribe)
        acks = self._acks = Acks(self._config, slot=self._slot, servers=servers, keys=registry, scribe=scribe, store=books)
        watch = self._looks = Watch(
            self._home, self._config, slot=self._slot, servers=servers, key=self._key, herald=herald, registry=registry
        ) if self._config.detect.on else None  # fmt: skip
        pump = self._pump = Pump(
            self._config, store=Sink(self._home, self._config, slot=self._slot), voice=herald, keys=registry,
            generation=lambda: app.consumer_generation_id, slot=self._slot, tap=watch.tap if watch is not None else None,
        )  # fmt: skip
        app = self._app = make_app(self._home, self._config, slot=self._slot, servers=servers, pump=pump)
        own = self._config.worker
        # an insert that is allowed to take longer than the watchdog waits is no standstill
        limit_s = max(own.watchdog_s, own.insert_timeout_s + INSERT_GRACE_S)
        Watchdog(limit_s=limit_s, signs=self._signs, broker=self._broker).start()
        started = asyncio.create_task(app.start())
        running = [pump.clock(), herald.run(), registry.run(), scribe.run(), acks.run(), self._say_all()]
        running += watch.jobs() if watch is not None else ()
        jobs = [asyncio.create_task(job) for job in running]
        ended = asyncio.create_task(pump.ended())
        try:
            code = await self._watch(app, [started, ended, *jobs])
        finally:
            if self._stop.is_set():
                await self._last_words(pump, herald, app)
            else:
                self.clean = False
            for task in (started, ended, *jobs):
                task.cancel()
            await asyncio.wait([started, ended, *jobs], timeout=STOP_S)
            if watch is not None:
                await watch.stop()
        return code

    async def _watch(self, app: WorkerApp, tasks: "list[asyncio.Task[Any]]") -> int:
        """Wait for the end; returns the exit code."""
        started, ended, *jobs = tasks
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), LOOK_S)
            if ended.done():
                return int(ended.result())
            if app.crashed:
                log.error("faust has crashed: %r", app.crash_reason)
                return CRASH_EXIT
            for task in (started, *jobs):
                if task.done() and not task.cancelled() and (fault := task.exception()) is not None:
                    log.error("the worker ends: %s", fault if isinstance(fault, WardlineError) else repr(fault))
                    return OPERATOR_EXIT if isinstance(fault, OperatorFault) else CRASH_EXIT
        return 0

    async def _last_words(self, pump: Pump, herald: Herald, app: WorkerApp) -> None:
        """Store what was taken in, say it, commit. Each step has its time: a store that is away must not keep us alive."""
        self._say("stopping")
        for what, step, limit_s in (
            ("the store", pump.finish(), FINISH_S), ("the frontiers", herald.quiet(), SAY_LAST_S), ("faust", app.stop(), STOP_S)
        ):  # fmt: skip
            try:
                await asyncio.wait_for(step, limit_s)
            except TimeoutError:
                self.clean = False
                log.warning("%s did not end in %.1f s; what is not stored is read again by the next start", what, limit_s)
            except Exception:
                self.clean = False
                log.exception("while stopping: %s", what)

    def _signs(self) -> Signs:
        app, pump = self._app, self._pump
        assert app is not None
        assert pump is not None
        heartbeat_at, behind = 0.0, 0
        if pump.is_open:
            with contextlib.suppress(Exception):  # between two assignments there is nothing to ask
                heartbeat_at, behind = app.consumer._thread.heartbeat_at, app.consumer.behind()
        return Signs(beat_at=self._beat_at, progress_at=pump.progress_at, heartbeat_at=heartbeat_at, behind=behind)

    async def _say_all(self) -> None:
        while True:
            self._beat_at = time.monotonic()
            pump, registry = self._pump, self._registry
            works = pump is not None and pump.is_open and registry is not None and not registry.why
            self._say("ready" if works else "starting")
            await asyncio.sleep(SAY_S)

    def _waits_for(self) -> str:
        """Why what control has said, who has applied it and what was noticed is not in the store yet; frames do not wait."""
        scribe = self._scribe.waits_for if self._scribe is not None else ""
        return scribe or (self._looks.waits_for if self._looks is not None else "")

    def _say(self, state: str) -> None:
        said: dict[str, Any] = {**self._fixed, "state": state}
        pump = self._pump
        if pump is not None:
            pump.figures.lag = self._signs().behind
            metrics.LAG.set(pump.figures.lag)
            metrics.PARTITIONS.set(len(pump.assigned))
            waits_for = pump.waits_for or self._waits_for()
            said |= {"partitions": sorted(pump.assigned), "waits_for": waits_for, **pump.figures.say()}
        if self._registry is not None:
            said |= {"control": self._registry.say(), "acks": self._acks.stored if self._acks is not None else 0}
            if self._looks is not None:
                said["lookout"] = self._looks.say()
            metrics.CONTROL_EPOCH.set(said["control"]["epoch"])
            metrics.HOSTS.set(said["control"]["hosts"])
        if said != self._said:
            self._said = said
            with contextlib.suppress(OSError):  # a full disk: the figures are late, the records are not
                write_run_file(self._home.run_file(self._slot), said)
