"""Callers who make everything up: a million domains, agents, credentials and traces leave a worker's memory flat."""

import asyncio
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.frame import Frame
from tests.support.frames import Host, Record, record
from tests.support.watching import World

FRAME = 4_000
START_US = 1_700_006_400_000_000
SETTLED = 400_000
"""Calls after which every limit is reached."""

GROWTH_MAX = 1.10


def hostile(host: Host, first: int, count: int) -> Iterator[tuple[int, Frame]]:
    """Frames of calls of which no two have anything in common."""
    for at in range(first, first + count, FRAME):
        calls: list[Record] = [
            record(
                n, time=START_US + n * 1_000, agent=f"agent-{n:x}", session="", host=f"h{n:x}.d{n:x}.example",
                domain=f"d{n:x}.example",
                resource=f'Host::"h{n:x}.d{n:x}.example:443"', action="http:POST", credential=f"c{n:x}", proof="secret",
                address=f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}:1", query_hash=n, query_bits=900,
                chain=f'User::"u{n:x}"\x1fAgent::"agent-{n:x}"', root=f'User::"u{n:x}"', trace_id=n.to_bytes(16, "big"),
            )
            for n in range(at, at + FRAME)
        ]  # fmt: skip
        yield at // FRAME % 2, host.frame(calls, at // FRAME % 2)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_a_million_of_everything_leaves_memory_flat_and_evictions_are_counted() -> None:
    async def main() -> tuple[int, int, int, int]:
        world = World(partitions=2)
        worker = await world.start(batch_records=20_000)
        seen = []
        for first, count in ((1, SETTLED), (SETTLED + 1, 1_000_000 - SETTLED)):
            for one in hostile(world.host, first, count):
                await world.feed(worker, [one])
                await world.quiet(worker)
                world.forget()
            seen.append(resident())
        said = worker.lookout.say()
        evicted, traces = said["evicted"], worker.tap._stitcher.evicted
        await world.end()
        return seen[0], seen[1], evicted, traces

    before, after, evicted, traces = asyncio.run(main())
    print(f"{before >> 20} MiB after {SETTLED} calls, {after >> 20} MiB after a million; {evicted} evicted, {traces} traces")
    assert after < GROWTH_MAX * before
    assert evicted > 1_000_000
    assert traces > 500_000
