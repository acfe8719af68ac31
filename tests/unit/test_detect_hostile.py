"""What a million of everything costs the detectors of agents: memory that is flat, and evictions that are counted."""

import os
from collections.abc import Callable

import pyarrow as pa
import pytest

from pipeline.core.detect.beacon import Beacons
from pipeline.core.detect.denials import DenyBursts
from pipeline.core.detect.interface import Detector
from pipeline.core.detect.sequence import Sequences
from pipeline.core.detect.volume import Volumes
from schemas.limits import BEACON_DAYS_MAX, DENY_AGENTS_MAX, SEQUENCE_TASKS_MAX, VOLUME_AGENTS_MAX
from tests.support.noticing import Row, row, table

MANY = 1_000_000
FRAME = 4_000
FLAT_BYTES = 16 << 20
"""What the process may grow by after its detector is full: Arrow's and Python's allocators keep some room."""


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


HOSTILE: dict[str, tuple[Callable[[], Detector], int, Callable[[int], Row]]] = {
    "hosts of one agent": (Beacons, BEACON_DAYS_MAX, lambda n: row(n // 50, host=f"h{n}.example")),
    "agents with a host": (Beacons, BEACON_DAYS_MAX, lambda n: row(n // 50, f"agent-{n}", host="x.example")),
    "agents that are refused": (DenyBursts, DENY_AGENTS_MAX, lambda n: row(n // 50, f"agent-{n}", denied=1)),
    "agents that send": (Volumes, VOLUME_AGENTS_MAX, lambda n: row(n // 50, f"agent-{n}", bytes_out=2_000_000)),
    "tasks of one agent": (Sequences, SEQUENCE_TASKS_MAX, lambda n: row(n // 50, task=f"t{n}", resource=f'Tool::"s/{n % 9}"')),
    "tools of many agents": (
        Sequences, SEQUENCE_TASKS_MAX, lambda n: row(n // 50, f"agent-{n // 9}", task=f"t{n // 3}", resource=f'Tool::"s/{n}"')
    ),
}  # fmt: skip


@pytest.mark.soak
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("what", HOSTILE)
def test_a_million_of_them_take_no_more_memory_than_the_limit(what: str) -> None:
    make, most, call = HOSTILE[what]
    detector = make()
    full = 0
    for start in range(0, MANY, FRAME):
        detector.take(table(call(n) for n in range(start, start + FRAME)))
        assert detector.entries <= most
        if start + FRAME == MANY // 2:
            pa.default_memory_pool().release_unused()
            full = resident()
    pa.default_memory_pool().release_unused()
    assert resident() - full < FLAT_BYTES
    assert detector.evicted > MANY // 10
