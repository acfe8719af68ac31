"""One event that nobody has made, through the very sink that the process would use: what came back, for whoever sets it up."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from pipeline.core.ocsf import Dialect, sample_alert
from pipeline.core.siem.feeder import Batch
from pipeline.shells.siem.run import product_version
from pipeline.shells.siem.sinks import sink_of, tables
from schemas.config import Config
from schemas.control import TENANT
from schemas.errors import OperatorFault
from schemas.home import Home


def send_sample(home: Home, config: Config, name: str) -> tuple[str, str, str]:
    """Send a test event to the sink of that name; returns where it went, its `metadata.uid`, and what came back.

    Raises OperatorFault for a name that is no sink, and where the sink says that somebody must act; PeerFault where it is away.
    """
    known = {table.name: table for table in tables(config)}
    if name not in known:
        raise OperatorFault(f"`{name}` is no sink of `{home.config}`, known are {', '.join(known)}")
    return asyncio.run(_send(home, config, name))


async def _send(home: Home, config: Config, name: str) -> tuple[str, str, str]:
    table = next(table for table in tables(config) if table.name == name)
    with ThreadPoolExecutor(1) as thread:
        sink = sink_of(home, config, table, thread)
        speaks = Dialect(version=table.ocsf, product_version=product_version())
        alert = sample_alert(sink=name, time_us=time.time_ns() // 1000, tenant=TENANT, speaks=speaks)
        try:
            said = await sink.take(Batch((sink.pack(alert),), (alert,)))
        finally:
            await sink.close()
    return sink.where, alert.uid, said
