"""Clients that call through a door without a pause, each call with a trace of its own, and what must be so of them at the end.

    with Load(site) as load:
        load.until(200)         # it serves
        ...                     # something breaks
        load.until(503, recorded=False)
    settle(site, load)
"""

import asyncio
import base64
import itertools
import json
import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType

from schemas.process import read_run_file
from tests.support.governed import AGENT, Governed
from tests.support.home import wait_until

CLIENTS = 12

PATH_BYTES = 690
"""Random ones, of each call's path: so that a spool is full soon, and no compressor makes an outbox of it small."""


@dataclass(frozen=True)
class Told:
    """What a client was told of one call."""

    status: int
    """0 where its connection broke off."""
    reason: str
    call_id: str


class Load:
    """Some clients, in a thread."""

    def __init__(self, site: Governed, clients: int = CLIENTS) -> None:
        self.told: dict[str, Told] = {}
        """By trace."""
        self._clients = clients
        host, _, port = site.address.rpartition(":")
        self._address = (host, int(port))
        self._host = site.http("www")
        self.session = secrets.token_hex(8)
        """Of all its calls; their traces begin with it."""
        self.refused_before = _unrecorded(site)
        self._login = base64.b64encode(f"{AGENT}+{self.session}:{site.secret}".encode()).decode()
        self._numbers = itertools.count(1)
        self._end = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self._clients)))

    async def _client(self) -> None:
        while not self._end.is_set():
            try:
                streams, writer = await asyncio.open_connection(*self._address)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            try:
                while not self._end.is_set():
                    trace = f"{self.session}{next(self._numbers):016x}"
                    self.told[trace] = Told(0, "", "")
                    self.told[trace] = await self._ask(streams, writer, trace)
                    if self.told[trace].status == 503:
                        await asyncio.sleep(0.02)
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

    async def _ask(self, streams: asyncio.StreamReader, writer: asyncio.StreamWriter, trace: str) -> Told:
        writer.write(
            f"POST http://{self._host}/echo/{secrets.token_urlsafe(PATH_BYTES)} HTTP/1.1\r\n"
            f"host: {self._host}\r\nproxy-authorization: Basic {self._login}\r\n"
            f"traceparent: 00-{trace}-00000000000000aa-01\r\ncontent-length: 32\r\n\r\n{trace}".encode()
        )
        head = (await streams.readuntil(b"\r\n\r\n")).decode().lower()
        body = await streams.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
        status = int(head.split()[1])
        if status == 200:
            assert body.decode() == trace
            return Told(status, "", "")
        said = json.loads(body)
        return Told(status, said["reason"], said["call_id"])

    def count(self, status: int, *, recorded: bool | None = None) -> int:
        """Calls that were told so; `recorded`: whether they have an id."""
        found = list(self.told.values())
        return sum(one.status == status and recorded in (None, bool(one.call_id)) for one in found)

    def until(self, status: int, more: int = 50, seconds: float = 60, *, recorded: bool | None = None) -> None:
        """Wait until so many calls more have been told so."""
        wanted = self.count(status, recorded=recorded) + more
        wait_until(lambda: self.count(status, recorded=recorded) >= wanted, seconds, lambda: f"{status}: {self.summary()}")

    def summary(self) -> Counter[tuple[int, str, bool]]:
        return Counter((one.status, one.reason, bool(one.call_id)) for one in list(self.told.values()))

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join(30)


def settle(site: Governed, load: Load, seconds: float = 60) -> None:
    """At the end of it all: whatever the origin saw is a call, once; what was refused it never saw, and is recorded too."""
    told = load.told
    traces = (one.all("traceparent")[0].split("-")[1] for one in site.origins.seen if one.path.startswith("/echo/"))
    saw = Counter(trace for trace in traces if trace.startswith(load.session))
    served = {trace for trace, one in told.items() if one.status == 200}
    broken = {trace for trace, one in told.items() if not one.status}
    assert max(saw.values()) == 1
    assert served <= saw.keys() <= served | broken, load.summary()
    unrecorded = sum(one.status == 503 and not one.call_id for one in told.values())

    mine = f"session = '{load.session}'"

    def settled() -> bool:
        ((calls, still_open),) = site.wardline.sql(f"SELECT count(), countIf(outcome = '') FROM calls WHERE {mine}")
        counted = _unrecorded(site) - load.refused_before
        return bool(calls >= len(told) - unrecorded - len(broken) and not still_open and counted >= unrecorded)

    wait_until(settled, seconds, lambda: f"{load.summary()}: {_figures(site)}", every=0.5)
    rows = site.wardline.sql(f"SELECT trace_id, call_id, verdict, outcome, reason FROM calls WHERE {mine}")
    assert max(Counter(row[0] for row in rows).values()) == 1
    calls = {str(row[0]): row[1:] for row in rows}
    assert saw.keys() <= calls.keys()
    assert {calls[trace][1:] for trace in served} == {("allow", "ok", "permit")}
    for trace, one in told.items():
        if one.call_id:
            assert calls[trace] == (one.call_id, "deny", "refused", one.reason)
    assert _unrecorded(site) - load.refused_before == unrecorded
    assert site.wardline.sql("SELECT * FROM gaps") == []


def _unrecorded(site: Governed) -> int:
    """Refusals for want of room that there was no room for either: counted when there was."""
    ((counted,),) = site.wardline.sql("SELECT sum(count) FROM refusals WHERE reason = 'overloaded' AND what = 'spool'")
    return int(counted)


def _figures(site: Governed) -> object:
    said = read_run_file(site.wardline.home.run_file("enforce-1")) or {}
    rows = site.wardline.sql("SELECT outcome, reason, count() FROM calls GROUP BY ALL")
    return {key: said.get(key) for key in ("state", "why", "spooled", "sealed", "stored")}, rows, time.monotonic()
