"""What a stitcher holds stays within its limits, whatever it is fed, and what is put away is counted."""

import gc
import time
from pathlib import Path

import pytest

from pipeline.core.stitch.stitcher import Stitcher
from schemas.limits import STITCH_TRACES_MAX
from tests.support.stitching import many, small

MIB = 1 << 20


def own_bytes() -> int:
    """Of this process's own pages."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def test_a_hundred_thousand_trace_ids_are_held_to_the_limit_and_counted() -> None:
    stitcher = small(traces_max=4_000, calls_max=6_000, gone_max=1 << 14)
    for number in range(50):
        stitcher.take(many(number * 2_000, 2_000), "enforce-1", number)
        assert stitcher.traces <= 4_000
    assert stitcher.traces + stitcher.evicted == 100_000
    assert stitcher.forgotten > 0, "more were put away than are remembered"


def test_traces_with_many_calls_are_held_to_the_limit_of_calls() -> None:
    stitcher = small(traces_max=4_000, calls_max=6_000)
    for number in range(20):
        stitcher.take(many(number * 2_000, 2_000, each=40), "enforce-1", number)
        assert stitcher.calls <= 6_000
    assert stitcher.traces + stitcher.evicted == 1_000


def test_chains_that_nobody_has_had_before_are_held_to_a_limit_of_bytes() -> None:
    stitcher = small(traces_max=8_000, calls_max=8_000, text_bytes_max=1 << 20)
    for number in range(20):
        stitcher.take(many(number * 1_000, 1_000, chains=1_000), "enforce-1", number)
        assert stitcher.text_bytes < 3 << 20
    assert stitcher.evicted > 10_000


def test_chains_that_no_call_names_any_more_are_let_go_without_putting_a_trace_away() -> None:
    stitcher = small(traces_max=2_000, calls_max=2_000, text_bytes_max=1 << 20)
    for number in range(40):
        stitcher.take(many(number * 100, 100, chains=100), "enforce-1", number)
    assert stitcher.evicted == 40 * 100 - stitcher.traces
    assert stitcher.traces > 1_000


@pytest.mark.soak
@pytest.mark.parametrize("each", [1, 2])
def test_memory_is_flat_over_a_million_trace_ids(each: int) -> None:
    """With the shipped limits: after they are full nothing grows, through a million traces more."""
    stitcher, frame, number = Stitcher(key=7), 4_000, 0

    def feed(traces: int) -> None:
        nonlocal number
        for _ in range(traces * each // frame):
            stitcher.take(many(number, frame, each=each), "enforce-1", number)
            stitcher.settle(number)
            number += frame
        gc.collect()

    feed(STITCH_TRACES_MAX + 100_000)
    full = own_bytes()
    begun = time.perf_counter()
    feed(1_000_000)
    took = time.perf_counter() - begun
    print(f"{took / (1_000_000 * each) * 1e6:.1f} us a call, {full / MIB:.0f} MiB")
    assert stitcher.evicted >= 1_000_000
    assert own_bytes() - full < 16 * MIB
