"""The process `wardline store`: takes the lock, opens the data, serves until it is told to stop."""

import asyncio
import logging
import os
import signal

import uvloop
from aiohttp import web

from pipeline.shells.store.engine import Engine
from pipeline.shells.store.front import Front
from pipeline.shells.store.guard import Guard
from pipeline.shells.store.users import Users
from schemas.config import Config
from schemas.home import Home
from schemas.process import private_dir, take_or_fail, write_run_file
from schemas.telemetry import serve_metrics

log = logging.getLogger(__name__)

NAME = "store"
STOP_S = 20.0
"""How long connections may take to end after the running write."""

URI_BYTES_MAX = 1 << 20
"""Bytes of a request's address (a query may stand there) and of one header, as on a server."""


def run(home: Home, config: Config, *, port: int = 0, metrics_port: int = 0) -> int:
    """Serve the embedded store on loopback until SIGTERM or SIGINT; returns the exit code.

    Raises OperatorFault when another process holds the store, or its data, passwords or migrations are not in order.
    """
    lock = take_or_fail(private_dir(home.run) / f"{NAME}.lock", "the store")
    try:
        return uvloop.run(_serve(home, config, port, metrics_port))
    finally:
        lock.release()


async def _serve(home: Home, config: Config, port: int, metrics_port: int) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    said = {"name": NAME, "pid": os.getpid(), "address": "", "metrics": serve_metrics(metrics_port)}
    path = home.run_file(NAME)
    write_run_file(path, {**said, "state": "starting"})
    users = Users(home, config)
    engine = Engine(private_dir(home.store), config)
    caps = {
        "max_memory_usage": config.store.query_bytes, "max_memory_usage_for_user": config.store.query_bytes,
        "max_execution_time": config.store.query_seconds,
    }  # fmt: skip
    guard = Guard(functions=engine.functions(), settings=engine.settings(), caps=caps)
    front = Front(engine, users, guard, config.clickhouse.database)
    # no access log: user names and passwords may stand in a query string
    runner = web.AppRunner(front.app(), handler_cancellation=True, auto_decompress=False, access_log=None,
                           shutdown_timeout=STOP_S, max_line_size=URI_BYTES_MAX, max_field_size=URI_BYTES_MAX)  # fmt: skip
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        said["address"] = f"127.0.0.1:{runner.addresses[0][1]}"
        write_run_file(path, {**said, "state": "ready"})
        log.info("the store serves on %s", said["address"])
        await stop.wait()
        write_run_file(path, {**said, "state": "stopping"})
        await site.stop()
        engine.end_reads()
    finally:
        await runner.cleanup()
        # a crash before this line loses nothing: what was acknowledged is in a part on disk
        engine.close()
        path.unlink(missing_ok=True)
    return 0
