"""The detectors of agents at the edges of what a record may hold."""

import json
from collections.abc import Callable

import pytest

from pipeline.core.detect.beacon import Beacons
from pipeline.core.detect.denials import DenyBursts
from pipeline.core.detect.interface import Detector
from pipeline.core.detect.sequence import Sequences
from pipeline.core.detect.volume import Volumes
from schemas.findings import EVIDENCE_BYTES_MAX, finding_row
from schemas.limits import RESOURCE_BYTES_MAX
from tests.support.noticing import DAY_S, Row, row, standing, table, words

MAKERS = (Beacons, DenyBursts, Sequences, Volumes)


@pytest.mark.parametrize("make", MAKERS)
def test_no_row_is_no_word(make: Callable[[], Detector]) -> None:
    detector = make()
    assert detector.take(table([])) == []
    assert detector.take(table([]).slice(0, 0)) == []
    assert (detector.entries, detector.evicted) == (0, 0)


@pytest.mark.parametrize("make", MAKERS)
def test_calls_of_nobody_are_not_looked_at(make: Callable[[], Detector]) -> None:
    detector = make()
    nobody = [row(n, "", denied=1, host="x", task="t", resource='Tool::"s/t"', bytes_out=10**9) for n in range(50)]
    assert detector.take(table(nobody)) == []
    assert detector.entries == 0


@pytest.mark.parametrize("make", MAKERS)
def test_the_largest_numbers_and_oldest_times_break_nothing(make: Callable[[], Detector]) -> None:
    most = (1 << 64) - 1
    rows = [
        row(at, host="x.example", task=f"t{n}", resource='Tool::"s/t"', bytes_out=most, bytes_in=most, calls=(1 << 32) - 1,
            denied=(1 << 32) - 1, call_seq=most, call_boot=most)
        for n, at in enumerate([-1_700_000_000, -1e9, 0, 0.5, 3600, DAY_S * 40, 1e9])
    ]  # fmt: skip
    for finding in words(make(), rows, rows):
        finding_row(finding, "w")


def test_a_worker_that_reads_two_weeks_anew_is_not_behind_one_that_has_run_for_months() -> None:
    """What it says today has the version that the other one's words have: it is no old word."""
    days = [[row(day * DAY_S + 600 * n, bytes_out=9_000, resource='Tool::"s/t"', task=f"{day}") for n in range(144)]
            for day in range(100)]  # fmt: skip
    last = [row(100 * DAY_S + n, bytes_out=90_000_000, denied=1, resource=f'Tool::"s/{n}"', task="last") for n in range(20)]
    for make in (DenyBursts, Sequences, Volumes):
        running, begun = make(), make()
        words(running, *days)
        words(begun, *days[-15:])
        of_running, of_begun = words(running, last), words(begun, last)
        assert of_running
        assert [(one.id, one.version) for one in of_running] == [(one.id, one.version) for one in of_begun]


def long_names(count: int) -> list[str]:
    """Resources of the greatest length, of characters that JSON writes in two."""
    return [f'Tool::"s/{n:03}{chr(92) * 2 * ((RESOURCE_BYTES_MAX - 14) // 2)}"' for n in range(count)]


def test_evidence_of_long_names_is_small_enough_to_store() -> None:
    names = long_names(30)
    calls = [row(n, task="learnt", resource=name) for n, name in enumerate(names)]
    backward = [row(DAY_S + n, task="bad", resource=name) for n, name in enumerate(names[::-1])]
    new: list[Row] = [row(2 * DAY_S + n, task="worse", resource=name.replace("s/", "z/")) for n, name in enumerate(names)]
    refused = [row(n, denied=1, resource=names[n]) for n in range(30)]
    found = [*standing(words(Sequences(), calls, backward, new)).values(), *standing(words(DenyBursts(), refused)).values()]
    assert [finding.detector for finding in found] == ["sequence", "sequence", "deny-burst"]
    assert [finding.score for finding in found[:2]] == [25, 45]
    for finding in found:
        assert 1000 < len(json.dumps(finding.evidence)) <= EVIDENCE_BYTES_MAX
        finding_row(finding, "w")


def test_evidence_of_the_busiest_beacon_is_small_enough_to_store() -> None:
    calls = [row(100 * n, host="x.example", bytes_out=(1 << 32) - 1, calls=90, bytes_in=9000) for n in range(864)]
    (finding,) = standing(words(Beacons(), calls)).values()
    assert finding.calls_count == 864 * 90
    assert len(finding.evidence["seconds"]) == 512
    finding_row(finding, "w")
