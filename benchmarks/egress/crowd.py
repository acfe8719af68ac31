"""What does a tunnel weigh that nobody uses, and does a door grow with the agents and hosts that it meets?

Ten thousand tunnels are opened and left alone. Then a thousand agents call a hundred thousand hosts, each once, of which policy
permits every tenth: those are looked up and dialled. Whatever a door remembers of agents, hosts and names is bounded, and every
bound is passed in the first half, so that the second half adds nothing.
"""

import asyncio
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.egress.client import ask, connect, request
from benchmarks.egress.dns import names
from benchmarks.egress.site import Site, files
from benchmarks.wire.tools import free_port, load_words, memory, origin, processor_us

TUNNELS: Final = 10_000
HOSTS: Final = 100_000
AGENTS: Final = 1_000
CONNECTIONS: Final = 64
PERMITTED: Final = "example.net"
REFUSED: Final = "example.org"
ONE_IN: Final = 10
"""So many hosts, one is permitted."""

GROWTH_MAX: Final = 1.10
"""Memory of a door after all hosts, beside that after half of them."""

IDLE_S: Final = 5.0


def measure(options: dict[str, str]) -> bool:
    """Measure and print; returns whether every limit holds."""
    with tempfile.TemporaryDirectory(prefix="wardline-egress-") as folder:
        good = _tunnels(Path(folder), int(options.get("tunnels") or TUNNELS))
    with tempfile.TemporaryDirectory(prefix="wardline-egress-") as folder:
        return _hosts(Path(folder), int(options.get("hosts") or HOSTS), int(options.get("agents") or AGENTS)) and good


def _tunnels(folder: Path, wanted: int) -> bool:
    room = files() - 1_000
    # a door needs two descriptors for each, client and origin one; where none may have so many there are more doors
    doors = -(-2 * wanted * 11 // 10 // room)
    many = min(wanted, room)
    port = free_port()
    limits = f"tunnels_per_agent = {many}\nconnections_per_agent = {many}\nconnections = {many}\n"
    with origin(port), Site(folder / "home", [port], doors=doors, egress=limits) as site:
        pids = site.door_pids()
        before = memory(pids)
        words = load_words(to=site.proxy, origin=f"localhost:{port}", auth=site.auth(), mode="connect", hold=1,
                           connections=many, seconds=300)  # fmt: skip
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            try:
                assert client.stdout is not None
                said = client.stdout.readline().decode()
                assert '"held"' in said, f"{many} tunnels do not stand: {said}"
                weight = (memory(pids) - before) / many
                used, began = processor_us(pids), time.monotonic()
                time.sleep(IDLE_S)
                busy = (processor_us(pids) - used) / 1e6 / (time.monotonic() - began)
            finally:
                client.kill()
        site.quiet()
    print(f"{many:,} idle tunnels at {doors} {'door' if doors == 1 else 'doors'}: {weight / 1000:.1f} kB each, {busy:.1%} of a"
          " processor for all, with their progress records", flush=True)  # fmt: skip
    if many < wanted:
        print(f"  {wanted:,} need {wanted + 1_000:,} open files, a process may have {room + 1_000:,} here")
    return True


def _hosts(folder: Path, hosts: int, agents: int) -> bool:
    port = free_port()
    extra = f'@id("crowd")\npermit (principal, action in Action::"http", resource in Domain::"{PERMITTED}");\n'
    with names() as server, origin(port):
        site = Site(folder / "home", [port], egress=f'dns_servers = ["127.0.0.1:{server}"]', extra=extra)
        with site:
            site.add_many([f"agent-{number}" for number in range(agents)])
            pids = site.door_pids()
            sizes, seconds, bad = [memory(pids)], 0.0, 0
            auths = [site.auth(f"agent-{number}") for number in range(agents)]
            for half in range(2):
                began = time.monotonic()
                first = half * hosts // 2
                bad += uvloop.run(_call(site.proxy, port, auths, first, first + hosts // 2))
                seconds += time.monotonic() - began
                sizes.append(memory(pids))
            site.quiet(300)
            rows = site.home.sql("SELECT uniqExact(host), uniqExact(agent), uniqExactIf(host, verdict = 'allow') FROM calls")
    growth = sizes[2] / sizes[1]
    holds = growth <= GROWTH_MAX and bad == 0
    said = ", ".join(f"{size / 1e6:,.0f}" for size in sizes)
    print(f"{'' if holds else 'MISSED: '}{agents:,} agents, {hosts:,} hosts, each once ({hosts / seconds:,.0f}/s, load "
          f"{os.getloadavg()[0]:.1f}): {said} MB at the start, half way and at the end; {growth:.3f} times in the second half"
          f"  at most {GROWTH_MAX}; {bad} failed  at most 0; in the store {rows[0][0]:,} hosts of {rows[0][1]:,} agents, "
          f"{rows[0][2]:,} of them let out", flush=True)  # fmt: skip
    return holds


def _host(number: int) -> tuple[str, int]:
    """A host's name, and how a call to it is answered."""
    domain, status = (REFUSED, 403) if number % ONE_IN else (PERMITTED, 200)
    return f"h{number}.crowd.{domain}", status


async def _call(to: str, port: int, auths: list[str], first: int, last: int) -> int:
    """Each host once, over a few connections that go on as other agents; returns how many were not answered as they must be."""
    waiting = iter(range(first, last))

    async def work() -> int:
        bad = 0
        streams = await connect(to)
        for number in waiting:
            host, expected = _host(number)
            data = request(f"{host}:{port}", "/v1/answer", auths[number % len(auths)])
            try:
                status, _ = await ask(*streams, data)
            except (OSError, EOFError):
                streams[1].close()
                streams = await connect(to)
                bad += 1
                continue
            bad += status != expected
        streams[1].close()
        return bad

    return sum(await asyncio.gather(*(work() for _ in range(CONNECTIONS))))
