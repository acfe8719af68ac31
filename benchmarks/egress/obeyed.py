"""How soon is a revoked agent refused, and its tunnels cut, as its clients see it? Four doors, 2,000 requests a second.

Most of those requests are another agent's, over connections to all four. For each agent in turn: four tunnels, one at each
door, and at each door one connection that asks every ten milliseconds as this agent. Then it is revoked: the clock runs from
before the question to control until the last door's first refusal, and until the last tunnel has ended. Whatever is answered
200 after a refusal by the same door is `late` and must be none.
"""

import asyncio
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.egress.client import Tunnel, Watcher, request
from benchmarks.egress.site import SAID_S, Site
from benchmarks.wire.tools import free_port, load_words, origin

DOORS: Final = 4
RATE: Final = 2_000
WATCHED: Final = 400
"""Of these, as the agent whose turn it is."""

REVOCATIONS: Final = 100
CONNECTIONS: Final = 32
SETTLE_S: Final = 0.1
"""Each agent asks for so long before it is revoked."""

WAIT_S: Final = 10.0
REFUSED_P99_MAX_MS: Final = 250.0
CUT_P99_MAX_MS: Final = 500.0


@dataclass(slots=True)
class Found:
    """Milliseconds, and what went wrong."""

    refused: list[float] = field(default_factory=list)
    cut: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    silent: int = 0
    late: int = 0
    other: int = 0
    requests: int = 0
    seconds: float = 0.0


def measure(options: dict[str, str]) -> bool:
    """Measure and print; returns whether every limit holds."""
    many = int(options.get("revocations") or REVOCATIONS)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="wardline-egress-") as folder, origin(port):
        site = Site(Path(folder) / "home", [port], doors=DOORS, pinned=False)
        with site:
            agents = [f"victim-{number}" for number in range(many)]
            site.add_many(agents)
            words = load_words(to=site.proxy, origin=f"localhost:{port}", auth=site.auth(), rate=RATE - WATCHED, seconds=3600,
                               connections=CONNECTIONS)  # fmt: skip
            with subprocess.Popen(words, stdout=subprocess.DEVNULL) as others:
                try:
                    time.sleep(SAID_S)
                    found = uvloop.run(_all(site, agents, f"localhost:{port}"))
                finally:
                    others.kill()
            site.quiet()
            rows = site.home.sql("SELECT count() FROM calls WHERE action = 'http:CONNECT' AND reason = 'revoked'"
                                 " AND verdict = 'deny' AND agent LIKE 'victim-%'")  # fmt: skip
    return _report(found, int(rows[0][0]), many * DOORS)


async def _all(site: Site, agents: list[str], host: str) -> Found:
    found = Found()
    began, before = time.monotonic(), _calls(site)
    for agent in agents:
        await _one(site, agent, host, found)
    found.seconds, found.requests = time.monotonic() - began, _calls(site) - before
    return found


def _calls(site: Site) -> int:
    """What the doors say that they have decided."""
    said = [site.door(number + 1) for number in range(DOORS)]
    return sum(int(one["calls"]) + int(one["refused"]) for one in said)


async def _one(site: Site, agent: str, host: str, found: Found) -> None:
    doors = [site.socket(number + 1) for number in range(DOORS)]
    tunnels = [await Tunnel.open(door, host, site.auth(agent)) for door in doors]
    watchers = [Watcher(door, request(host, "/v1/answer", site.auth(agent)), DOORS / WATCHED) for door in doors]
    tasks = [asyncio.create_task(watcher.run()) for watcher in watchers]
    await asyncio.sleep(SETTLE_S)
    began = time.time_ns()
    change = await asyncio.to_thread(site.control.change, "revoke", kind="agent", name=agent, cascade=True, reason="measured")
    answer = await asyncio.to_thread(site.control.ask, "/acks", epoch=change.epoch, policy="", wait_s=WAIT_S)
    found.answered.append((time.time_ns() - began) / 1e6)
    hosts = [one for one in answer["hosts"] if one["expected"]]
    found.silent += not all(one["applied"] for one in hosts) or sum(len(one["doors"]) for one in hosts) != DOORS
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if all(one.seen.first_refused_ns for one in watchers) and all(one.cut_ns for one in tunnels):
            break
        await asyncio.sleep(0.005)
    found.refused.append(max(_took_ms(began, one.seen.first_refused_ns) for one in watchers))
    found.cut.append(max(_took_ms(began, one.cut_ns) for one in tunnels))
    for watcher in watchers:
        watcher.stop()
    await asyncio.gather(*tasks)
    for tunnel in tunnels:
        tunnel.close()
    found.late += sum(one.seen.late for one in watchers)
    found.other += sum(one.seen.other for one in watchers)


def _took_ms(began_ns: int, at_ns: int) -> float:
    """Milliseconds until something was seen; for what never was, all that was waited."""
    return (at_ns - began_ns) / 1e6 if at_ns else WAIT_S * 1000


def _report(found: Found, cut: int, tunnels: int) -> bool:
    good = found.silent == 0 and found.late == 0 and found.other == 0 and cut == tunnels
    print(f"{found.requests / found.seconds:,.0f} requests/s at {DOORS} doors meanwhile")
    for name, values, limit in (
        ("revoke to the last door's refusal", found.refused, REFUSED_P99_MAX_MS),
        ("revoke to the last tunnel's end  ", found.cut, CUT_P99_MAX_MS),
        ("revoke to the answer that all do ", found.answered, None),
    ):
        p99 = statistics.quantiles(values, n=100)[98] if len(values) > 1 else values[0]
        holds = limit is None or p99 <= limit
        good = good and holds
        print(f"{'' if holds else 'MISSED: '}{name}, ms  p50 {statistics.median(values):6.1f}  p99 {p99:6.1f}"
              f"  max {max(values):6.1f}  of {len(values)}{f'  p99 at most {limit:.0f}' if limit else ''}")  # fmt: skip
    print(f"{found.silent} not acknowledged, {found.late} let out behind a refusal, {found.other} answered otherwise: each at"
          f" most 0; {cut} of {tunnels} tunnels end as `revoked` in the store", flush=True)  # fmt: skip
    return good
