"""The process `wardline siem`: a line for each sink, and what they say of themselves.

Exit codes: 0 after SIGTERM or SIGINT, 2 when somebody must put something right first (configuration, a cursor that is none, a
token or certificate file), 1 when a part of it broke: the next start goes on from the cursors. A sink that is away, or that
refuses, is no reason to end: it is tried again, and `wardline status` says what it waits for.
"""

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import signal
from typing import Any, Final

from pipeline.shells.siem.line import Line
from pipeline.shells.siem.sinks import tables
from schemas.config import Config
from schemas.errors import WardlineError
from schemas.home import Home
from schemas.process import private_dir, write_run_file
from schemas.telemetry import serve_metrics

log = logging.getLogger(__name__)

SAY_S: Final = 0.5
FINISH_S: Final = 4.0
"""How long a stopping process goes on with what is new. What no sink has taken then is sent by the next start."""

CLOSE_S: Final = 3.0


def product_version() -> str:
    """Which Wardline says so."""
    return importlib.metadata.version("wardline")


def run(home: Home, config: Config, *, metrics_port: int = 0) -> int:
    """Feed the sinks until SIGTERM or SIGINT; returns the exit code. Raises OperatorFault."""
    for chatty in ("clickhouse_connect", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    return asyncio.run(_run(home, config, metrics_port))


async def _run(home: Home, config: Config, metrics_port: int) -> int:
    process = _Siem(home, config, metrics_port)
    code = await process.main()
    home.run_file("siem").unlink(missing_ok=True)
    if not process.clean:
        # a thread hangs in a disk or a connection, and Python would wait for it: what it was at is done again
        logging.shutdown()
        os._exit(code)
    return code


class _Siem:
    def __init__(self, home: Home, config: Config, metrics_port: int) -> None:
        self._home = home
        self._stop = asyncio.Event()
        self._said: dict[str, Any] = {}
        self.clean = False
        """Whether nothing hangs when `main` returns."""
        self.lines = [Line(home, config, table, product_version()) for table in tables(config)]
        private_dir(home.run)
        address = serve_metrics(metrics_port)
        self._fixed = {"name": "siem", "pid": os.getpid(), "address": address, "metrics": address}

    async def main(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._say("ready")
        log.info("feeding %s", ", ".join(f"{line.name} ({line.sink.where})" for line in self.lines))
        stopping = asyncio.create_task(self._stop.wait())
        jobs = [asyncio.create_task(line.run()) for line in self.lines]
        saying = asyncio.create_task(self._say_all())
        try:
            await asyncio.wait([stopping, saying, *jobs], return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                self._say("stopping")
                for line in self.lines:
                    line.stop()
                await asyncio.wait(jobs, timeout=FINISH_S)
            self.clean = all(job.done() for job in jobs)
            return self._code([saying, *jobs])
        finally:
            for task in (stopping, saying, *jobs):
                task.cancel()
            await asyncio.wait([stopping, saying, *jobs], timeout=1.0)
            try:
                await asyncio.wait_for(asyncio.gather(*(line.close() for line in self.lines)), CLOSE_S)
            except TimeoutError:
                self.clean = False

    def _code(self, tasks: "list[asyncio.Task[None]]") -> int:
        for task in tasks:
            if task.done() and not task.cancelled() and (fault := task.exception()) is not None:
                what = str(fault) if isinstance(fault, WardlineError) else repr(fault)
                log.error("the process ends: %s", what, exc_info=None if isinstance(fault, WardlineError) else fault)
                return 1
        return 0 if self._stop.is_set() else 1

    async def _say_all(self) -> None:
        while True:
            await asyncio.sleep(SAY_S)
            self._say("ready")

    def _say(self, state: str) -> None:
        said = {**self._fixed, "state": state, "sinks": [line.say() for line in self.lines]}
        if said != self._said:
            self._said = said
            with contextlib.suppress(OSError):  # a full disk: the figures are late
                write_run_file(self._home.run_file("siem"), said)
