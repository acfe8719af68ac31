"""The stitcher: one trace of an operation that crosses enforcers, whatever the order in which its records come."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.core.stitch.stitcher import Stitched
from schemas.findings import CHAIN, finding_row, score_of
from tests.support.frames import batch_of
from tests.support.stitching import (
    ALICE,
    BEGAN_US,
    BOB,
    FIRST_DOOR,
    PLANNER,
    QUIET_US,
    RESEARCHER,
    SCRAPER,
    SECOND_DOOR,
    Kept,
    Made,
    call,
    feed,
    records_of,
    small,
    span_of,
    stored_rows,
    told,
)

FIRST = call(1, 5, [ALICE, PLANNER], at=0, until=900)
SECOND = call(1, 7, [ALICE, PLANNER, RESEARCHER], boot=SECOND_DOOR, at=100, until=800, parent=FIRST.span)
OPERATION = (FIRST, SECOND)


def test_an_operation_that_crosses_two_enforcers_is_one_complete_trace() -> None:
    kept = told(OPERATION)
    (trace,) = kept.traces.values()
    assert (trace["grade"], trace["root"], trace["why"]) == ("complete", ALICE, "")
    assert (trace["agents"], trace["enforcers"]) == (["planner", "researcher"], ["enforce-1", "enforce-2"])
    assert (trace["calls"], trace["denied"], trace["depth"]) == (2, 0, 3)
    assert [round(trace[name].timestamp() * 1000) - BEGAN_US // 1000 for name in ("started", "ended")] == [0, 900]
    assert kept.edge(FIRST) == ("", "", (ALICE, PLANNER), "complete")
    assert kept.edge(SECOND) == (FIRST.id, "signed", (ALICE, PLANNER, RESEARCHER), "complete")
    assert not kept.findings


def test_it_is_the_same_in_every_order_and_every_split_with_a_restart_anywhere() -> None:
    """24 orders of its four records, 8 ways to cut each into batches, and after each batch another worker that reads the store;
    and the same worker, a record at a time."""
    wanted = told(OPERATION).said()
    for order in itertools.permutations(range(len(RECORDS))):
        for cuts in itertools.product([False, True], repeat=3):
            assert replayed(order, cuts, True).said() == wanted, (order, cuts)
        assert replayed(order, (True, True, True), False).said() == wanted, order


def test_an_operation_of_whole_decisions_is_the_one_trace_that_it_is_of_two_records_a_call() -> None:
    wanted = told(OPERATION)
    for calls in itertools.permutations([FIRST.whole, SECOND.whole]):
        kept = told(calls)
        assert kept.said() == wanted.said()
        assert kept.versions() == wanted.versions()
        again, stitcher = Kept(), small()
        again.keep(stitcher.rebuild(stored_rows(records_of(calls)), BEGAN_US))
        again.keep(stitcher.settle(BEGAN_US + QUIET_US))
        assert again.said() == wanted.said()
        assert again.versions() == wanted.versions()


def test_a_whole_decision_was_open_as_long_as_it_says() -> None:
    """By its end alone is told which call can have caused one that names none."""
    lost = call(1, 9, [ALICE, PLANNER, RESEARCHER], boot=SECOND_DOOR, at=100, until=800).whole
    assert told([FIRST.whole, lost]).edge(lost)[:2] == (FIRST.id, "inferred")
    after = call(1, 9, [ALICE, PLANNER, RESEARCHER], boot=SECOND_DOOR, at=1000, until=1100).whole
    assert told([FIRST.whole, after]).edge(after)[:2] == ("", ""), "none was open"


RECORDS = records_of(OPERATION)


@functools.cache
def batches(order: tuple[int, ...]) -> list[tuple[str, Any]]:
    """One batch for each run of records of one enforcer, as `feed` makes them."""
    runs = itertools.groupby((RECORDS[at] for at in order), key=lambda one: one[0])
    return [(name, batch_of([row for _, row in rows])) for name, rows in runs]


@functools.cache
def stored(order: tuple[int, ...]) -> Any:
    return stored_rows([RECORDS[at] for at in order])


def replayed(order: tuple[int, ...], cuts: Sequence[bool], restart: bool) -> Kept:
    """Feed records, cut behind each where `cuts` says so; a restart forgets everything and reads the store."""
    stitcher, kept, at = small(), Kept(), 0
    for bound in [*(n + 1 for n, cut in enumerate(cuts) if cut), len(order)]:
        for name, rows in batches(order[at:bound]):
            kept.keep(stitcher.take(rows, name, BEGAN_US))
        at = bound
        if restart:
            stitcher = small()
            kept.keep(stitcher.rebuild(stored(order[:bound]), BEGAN_US))
    kept.keep(stitcher.settle(BEGAN_US + QUIET_US))
    return kept


def test_a_trace_is_provisional_until_it_has_been_quiet_and_again_when_more_comes() -> None:
    stitcher, kept = small(settle_s=30), Kept()
    feed(stitcher, kept, records_of([FIRST]))
    assert kept.grade(1) == "none", "one call of which nothing is missing needs no row"
    feed(stitcher, kept, records_of([SECOND]), BEGAN_US + 1)
    assert kept.grade(1) == "provisional"
    kept.keep(stitcher.settle(BEGAN_US + 30_000_000))
    assert kept.grade(1) == "provisional"
    kept.keep(stitcher.settle(BEGAN_US + 30_000_001))
    assert kept.grade(1) == "complete"
    before = kept.traces[(1).to_bytes(16, "big")]["version"]
    third = call(1, 9, [ALICE, PLANNER], at=950, until=990)
    feed(stitcher, kept, records_of([third]), BEGAN_US + 60_000_000)
    assert kept.grade(1) == "provisional"
    kept.keep(stitcher.settle(BEGAN_US + QUIET_US))
    assert kept.grade(1) == "complete"
    assert kept.traces[(1).to_bytes(16, "big")]["version"] > before
    assert stitcher.settle(BEGAN_US + 2 * QUIET_US) == Stitched(), "nothing is said twice"


def test_a_dropped_parent_is_a_gap() -> None:
    """The middle call of three never comes: the last one names a span of a door that is known."""
    middle = call(1, 8, [ALICE, PLANNER, RESEARCHER], boot=SECOND_DOOR, parent=FIRST.span, at=100, until=800)
    last = call(1, 9, [ALICE, PLANNER, RESEARCHER, SCRAPER], boot=SECOND_DOOR, parent=middle.span, at=200, until=300)
    kept = told([FIRST, last])
    assert kept.grade(1) == "gap"
    assert kept.traces[(1).to_bytes(16, "big")]["why"] == "names a parent that is not recorded: 1 call"
    assert kept.edge(last) == ("", "", (ALICE, PLANNER, RESEARCHER, SCRAPER), "gap")
    assert not kept.findings
    assert told([FIRST, last, middle]).grade(1) == "complete"


def test_a_single_call_whose_parent_is_missing_is_a_gap_and_one_with_a_span_of_its_own_is_not() -> None:
    other = call(2, 1, [ALICE, PLANNER], boot=SECOND_DOOR)
    assert told([other, call(1, 5, [PLANNER], parent=span_of(SECOND_DOOR, 99))]).grade(1) == "gap", "of a known door"
    assert told([call(1, 5, [PLANNER], parent=span_of(SECOND_DOOR, 99))]).grade(1) == "none", "of nobody that is known"
    assert told([call(1, 5, [PLANNER, RESEARCHER], parent=b"\1" * 8)]).grade(1) == "gap", "somebody delegated"


def test_a_reused_trace_id_with_another_root_is_forged() -> None:
    for thief in (
        call(1, 9, [BOB, SCRAPER], at=400, until=500),
        call(1, 9, [BOB, SCRAPER], at=400, until=500, parent=FIRST.span),
        call(1, 9, [BOB, SCRAPER], at=400, until=500, parent=b"\7" * 8),
        call(1, 9, [SCRAPER, RESEARCHER], at=400, until=500, parent=b"\7" * 8),
        call(1, 9, [SCRAPER], at=9000, until=9100),
        call(1, 9, [SCRAPER], at=9000, until=9100, parent=b"\7" * 8),
    ):
        kept = told([*OPERATION, thief])
        assert kept.grade(1) == "forged", thief
        assert kept.traces[(1).to_bytes(16, "big")]["root"] == ALICE
        assert kept.edge(thief)[2:] == (tuple(thief.records[0]["chain"].split("\x1f")), "forged")
        (finding,) = kept.findings.values()
        assert (finding.detector, finding.subject) == (CHAIN, f"trace={1:032x}")
        assert (finding.score, finding.calls, finding.agent) == (90, (thief.id,), thief.records[0]["agent"])
        assert finding.evidence["forged"] == 1


def test_a_chain_wider_than_its_parents_is_widened() -> None:
    for chain in ([ALICE, RESEARCHER], [ALICE, PLANNER, SCRAPER], [ALICE, SCRAPER, PLANNER, RESEARCHER]):
        caused = call(1, 9, chain, boot=SECOND_DOOR, at=200, until=300, parent=SECOND.span)
        kept = told([*OPERATION, caused])
        assert kept.grade(1) == "widened", chain
        assert kept.edge(caused) == (SECOND.id, "observed", tuple(chain), "widened")
        (finding,) = kept.findings.values()
        assert finding.score == 80
        assert finding.evidence["calls"][0]["parent_chain"] == " -> ".join([ALICE, PLANNER, RESEARCHER])


def test_an_agent_that_proves_only_itself_acts_for_whoever_called_it() -> None:
    alone = call(1, 9, [SCRAPER], boot=SECOND_DOOR, at=200, until=300, parent=SECOND.span)
    onward = call(1, 10, [SCRAPER, RESEARCHER], boot=SECOND_DOOR, at=210, until=220, parent=alone.span, assurance=["issued"])
    kept = told([*OPERATION, alone, onward])
    whole = (ALICE, PLANNER, RESEARCHER, SCRAPER)
    assert kept.edge(alone) == (SECOND.id, "observed", whole, "complete")
    assert kept.edge(onward) == (alone.id, "issued", (*whole, RESEARCHER), "complete")
    assert kept.grade(1) == "complete"


def test_nobody_acts_for_the_caller_of_a_call_that_was_refused() -> None:
    refused = call(1, 7, [ALICE, PLANNER], at=100, allowed=False)
    alone = call(1, 9, [SCRAPER], boot=SECOND_DOOR, at=200, until=300, parent=refused.span)
    assert told([refused, alone]).grade(1) == "forged"


def test_a_lost_header_is_made_up_for_by_time_where_only_one_call_can_have_been_the_cause() -> None:
    lost = call(1, 9, [ALICE, PLANNER, RESEARCHER], boot=SECOND_DOOR, at=100, until=800)
    kept = told([FIRST, lost])
    assert kept.edge(lost) == (FIRST.id, "inferred", (ALICE, PLANNER, RESEARCHER), "complete")
    beside = call(1, 6, [ALICE, PLANNER], at=10, until=890)
    assert told([FIRST, beside, lost]).edge(lost)[:2] == ("", ""), "two were open: nothing is guessed"
    after = call(1, 9, [ALICE, PLANNER, RESEARCHER], boot=SECOND_DOOR, at=1000, until=1100)
    assert told([FIRST, after]).edge(after)[:2] == ("", ""), "none was open"


def test_calls_that_name_each_other_are_forged_and_end() -> None:
    one = call(1, 5, [ALICE, PLANNER], parent=span_of(FIRST_DOOR, 6), at=0)
    two = call(1, 6, [ALICE, PLANNER], parent=span_of(FIRST_DOOR, 7), at=1)
    three = call(1, 7, [ALICE, PLANNER], parent=span_of(FIRST_DOOR, 5), at=2)
    below = call(1, 8, [ALICE, PLANNER], parent=three.span, at=3)
    itself = call(2, 20, [ALICE, PLANNER], parent=span_of(FIRST_DOOR, 20))
    kept = told([one, two, three, below, itself])
    assert (kept.grade(1), kept.grade(2)) == ("forged", "gap")
    assert [kept.edge(made)[0] for made in (one, two, three, below)] == ["", "", "", three.id]


def test_a_row_of_calls_deeper_than_the_limit_begins_anew_as_a_gap() -> None:
    made = [FIRST]
    for number in range(100):
        made.append(call(1, 10 + number, [ALICE, PLANNER], parent=made[-1].span, at=number))
    kept = told(made, per_trace_max=128, calls_max=512)
    assert kept.grade(1) == "gap"
    assert [number for number, one in enumerate(made) if kept.edge(one)[3] == "gap"] == [65]


def test_a_trace_with_more_calls_than_it_may_have_says_so() -> None:
    kept = told([call(1, number, [ALICE, PLANNER], at=number) for number in range(1, 80)])
    (trace,) = kept.traces.values()
    assert (trace["grade"], trace["calls"], len(kept.edges)) == ("gap", 79, 64)
    assert trace["why"] == "is beyond the limit of 64 calls: 15 more"


def test_what_is_said_of_a_call_is_written_again_only_when_it_is_another() -> None:
    stitcher, kept = small(), Kept()
    feed(stitcher, kept, records_of(OPERATION))
    said = stitcher.take(batch(call(1, 9, [ALICE, PLANNER], at=5, parent=FIRST.span)), "enforce-1", BEGAN_US)
    assert (said.traces.num_rows, said.edges.num_rows) == (1, 1)
    said = stitcher.take(batch(call(1, 10, [ALICE, PLANNER], at=6)), "enforce-1", BEGAN_US)
    assert (said.traces.num_rows, said.edges.num_rows) == (1, 0), "nobody caused it: the call says all"
    assert stitcher.settle(BEGAN_US + QUIET_US).edges.num_rows == 0


def batch(*calls: Made) -> Any:
    return batch_of([row for one in calls for row in one.records])


def test_an_evicted_trace_is_asked_for_and_is_whole_again_from_the_store() -> None:
    stitcher, kept = small(traces_max=8, calls_max=8), Kept()
    everything = records_of([FIRST])
    feed(stitcher, kept, records_of([FIRST]))
    for number in range(2, 20):
        other = records_of([call(number, number, [ALICE, PLANNER])])
        everything += other
        feed(stitcher, kept, other)
    assert stitcher.evicted > 0
    late = records_of([SECOND])
    everything += late
    said = stitcher.take(batch(SECOND), "enforce-2", BEGAN_US)
    assert (said.wanted, said.traces.num_rows, said.edges.num_rows) == (((1).to_bytes(16, "big"),), 0, 0)
    rows = stored_rows([one for one in everything if one[1]["trace_id"] == (1).to_bytes(16, "big")])
    kept.keep(stitcher.rebuild(rows, BEGAN_US, said.wanted))
    kept.keep(stitcher.settle(BEGAN_US + QUIET_US))
    assert kept.said() == told(OPERATION).said()


def test_an_evicted_trace_that_the_store_has_no_more_of_goes_on_with_what_comes() -> None:
    stitcher, kept = small(traces_max=4, calls_max=4), Kept()
    for number in range(1, 12):
        feed(stitcher, kept, records_of([call(number, number, [ALICE, PLANNER])]))
    said = stitcher.take(batch(SECOND), "enforce-2", BEGAN_US)
    assert said.wanted
    kept.keep(stitcher.rebuild(stored_rows(records_of([SECOND])).slice(0, 0), BEGAN_US, said.wanted))
    assert kept.grade(1) == "provisional"


def test_what_has_not_settled_is_said_when_it_is_put_away() -> None:
    stitcher, kept = small(traces_max=4, calls_max=8), Kept()
    feed(stitcher, kept, records_of(OPERATION))
    assert kept.grade(1) == "provisional"
    for number in range(2, 12):
        feed(stitcher, kept, records_of([call(number, number, [ALICE, PLANNER])]))
    assert kept.grade(1) == "complete"


def test_a_score_is_what_its_terms_say_and_a_row_of_it_can_be_stored() -> None:
    thief = call(1, 9, [BOB, SCRAPER], at=400)
    wide = call(1, 10, [ALICE, RESEARCHER], at=410, parent=SECOND.span)
    (finding,) = told([*OPERATION, thief, wide]).findings.values()
    assert [(term.name, term.value, term.points) for term in finding.terms] == [("forged", 1, 90), ("widened", 1, 80)]
    assert score_of(finding.terms) == finding.score == 100
    assert finding_row(finding, "work-1")["severity"] == "critical"


def test_a_finding_is_taken_back_when_what_explains_it_comes_late() -> None:
    """A single agent whose cause is not here yet, after the trace was quiet; then its cause comes."""
    alone = call(1, 9, [SCRAPER], boot=SECOND_DOOR, at=200, until=300)
    stitcher, kept = small(), Kept()
    early = call(1, 4, [ALICE, PLANNER], at=-50, until=-10)
    feed(stitcher, kept, records_of([early, alone]))
    kept.keep(stitcher.settle(BEGAN_US + QUIET_US))
    assert kept.grade(1) == "forged"
    feed(stitcher, kept, records_of([FIRST]), BEGAN_US + QUIET_US)
    kept.keep(stitcher.settle(BEGAN_US + 3 * QUIET_US))
    assert kept.grade(1) == "complete"
    (finding,) = kept.findings.values()
    assert finding.withdrawn
    assert finding.score == 0


def test_a_finding_says_the_same_whatever_the_order_in_which_its_calls_came() -> None:
    """As many calls are forged after the last one as before it in some orders, and for another reason."""
    made = [
        call(1, 1, [ALICE, PLANNER], parent=span_of(FIRST_DOOR, 4), allowed=False), call(1, 2, [ALICE, PLANNER]),
        call(1, 4, [BOB, PLANNER, RESEARCHER], parent=span_of(SECOND_DOOR, 3)),
    ]  # fmt: skip
    said = []
    for order in itertools.permutations(records_of(made)):
        stitcher, kept = small(), Kept()
        stitcher.know([FIRST_DOOR, SECOND_DOOR])
        for one in order:
            feed(stitcher, kept, [one])
        kept.keep(stitcher.settle(BEGAN_US + QUIET_US))
        said.append([(one.calls, one.title, one.evidence) for one in kept.findings.values() if not one.withdrawn])
    assert all(one == said[0] for one in said)
    assert len(said[0]) == 1


@pytest.mark.parametrize("empty", [True, False])
def test_records_without_a_decision_wait_for_it(empty: bool) -> None:
    stitcher, kept = small(), Kept()
    decision, effect = records_of([FIRST])
    feed(stitcher, kept, [effect])
    kept.keep(stitcher.settle(BEGAN_US + QUIET_US))
    assert (kept.written, stitcher.traces) == (0, 1)
    if not empty:
        feed(stitcher, kept, [decision, *records_of([SECOND])])
        kept.keep(stitcher.settle(BEGAN_US + 2 * QUIET_US))
        assert kept.said() == told(OPERATION).said()
