"""One risk of what the detectors say of an agent."""

import random
from dataclasses import replace
from typing import Any

import pytest

from pipeline.core.detect.fuse import DAY_US, RISK_MIN, day_of, points, risk, risk_of, risks, taken_back
from schemas.detectors import RISK, TACTICS
from schemas.findings import BEACON, DENY_BURST, FIRST_SEEN, LEAK, SECOND_HOLDER, SEQUENCE, VOLUME, Finding, Term
from tests.support.noticing import T0, stored

HOUR_US = 3_600_000_000
START_US = T0 * 1_000_000


def said(detector: str, score: float, hours: float, **more: Any) -> Finding:
    """A finding of an agent, `hours` after T0."""
    time_us = START_US + round(hours * HOUR_US)
    fields: dict[str, Any] = {
        "detector": detector, "subject": f"agent=a {hours}", "window_us": day_of(time_us), "version": 3, "agent": "a",
        "started_us": time_us - 5, "ended_us": time_us + 5, "time_us": time_us, "evidence": {},
        "terms": (Term(name="t", value=1, points=score),), "title": f"{detector} at {hours}",
        "calls": (f"{round(hours * 100):032x}",), "calls_count": 1,
    }  # fmt: skip
    return Finding(**fields | more)


def at(hours: float) -> int:
    return START_US + round(hours * HOUR_US)


def test_a_finding_is_worth_half_of_it_an_hour_later() -> None:
    assert [points(80, 0, round(hours * HOUR_US)) for hours in (0, 1, 2, 0.5)] == [80.0, 40.0, 20.0, 56.569]
    assert points(80, 10, 9) == 0.0


def test_nothing_is_no_risk() -> None:
    assert risk([], START_US) is None


@pytest.mark.parametrize("detector", sorted(TACTICS))
def test_one_detector_alone_is_a_risk_only_when_it_is_sure(detector: str) -> None:
    assert risk([said(detector, 99.9, 1)], at(2)) is None
    found = risk([said(detector, RISK_MIN, 1)], at(2))
    assert found is not None
    assert [term.name for term in found.terms] == [detector]
    assert found.title == f"{detector} alone makes agent a a risk"


def test_a_detector_that_repeats_itself_says_nothing_new() -> None:
    """Ten beacons are no proof, and ten new domains are an agent that browses."""
    for detector in (BEACON, FIRST_SEEN):
        assert risk([said(detector, 60, 1 + n / 100) for n in range(10)], at(2)) is None


def test_two_medium_findings_of_two_tactics_are_a_hundred() -> None:
    said_both = [said(FIRST_SEEN, 40, 5), said(DENY_BURST, 40, 5)]
    found = risk(said_both, at(5))
    assert found is not None
    assert (found.score, found.agent, found.subject, found.time_us) == (100.0, "a", "agent=a", at(5))
    assert found.title == f"{', '.join(f.detector for f in sorted(said_both, key=lambda f: f.id))} together make agent a a risk"
    assert {term.name: term.points for term in found.terms} == {FIRST_SEEN: 40, DENY_BURST: 40, "tactics": 20}


def test_two_of_one_tactic_may_see_the_same_thing_twice() -> None:
    assert risk([said(LEAK, 45, 5), said(VOLUME, 45, 5)], at(5)) is None
    assert risk([said(BEACON, 60, 5), said(FIRST_SEEN, 39, 5)], at(5)) is None


def test_two_tactics_with_less_alert_and_score_less_than_rules_act_on() -> None:
    found = risk([said(FIRST_SEEN, 40, 5), said(SEQUENCE, 25, 6)], at(6))
    assert found is not None
    assert found.score == 20 + 25 + 20
    assert risk([said(FIRST_SEEN, 40, 5), said(SEQUENCE, 25, 6.1)], at(7)) is None


def test_what_comes_later_than_it_was_asked_for_does_not_count() -> None:
    findings = [said(FIRST_SEEN, 60, 5), said(SEQUENCE, 60, 6)]
    assert risk(findings, at(5.9)) is None
    assert risk(findings, at(6)) is not None


def test_a_risk_stays_one_for_its_day_and_names_its_worst_moment() -> None:
    findings = [said(FIRST_SEEN, 45, 2), said(DENY_BURST, 45, 2.5), said(SEQUENCE, 70, 2.6), said(FIRST_SEEN, 10, 20)]
    found = risk(findings, at(23))
    assert found is not None
    assert found.time_us == at(2.5), "where it became one"
    assert found.evidence["at_us"] == at(2.6), "where it was greatest"
    assert {one["finding"] for one in found.evidence["contributions"]} == {f.id for f in findings[:3]}
    assert risk(findings, at(25)) is None, "the next day begins anew"


def test_midnight_makes_nothing_worth_less() -> None:
    (found,) = risks([said(FIRST_SEEN, 60, 23.9), said(DENY_BURST, 60, 24.1)])
    assert (found.window_us, found.time_us) == (at(24), at(24.1))
    assert found.score == 100.0


def test_its_score_follows_from_its_evidence() -> None:
    dice = random.Random(4)
    scores = 0
    for _ in range(200):
        findings = [said(dice.choice(sorted(TACTICS)), dice.randint(5, 100), dice.uniform(0, 24)) for _ in range(12)]
        for found in risks(findings):
            seen = stored(found).evidence
            worth = {c["detector"]: c["score"] * 0.5 ** ((seen["at_us"] - c["time_us"]) / 3.6e9) for c in seen["contributions"]}
            strong = {c["tactic"] for c in seen["contributions"] if round(worth[c["detector"]], 3) >= 20}
            assert found.score == pytest.approx(min(100, sum(worth.values()) + 20 * max(0, len(strong) - 1)), abs=0.01)
            assert found.score == risk_of(seen["contributions"], seen["at_us"])
            scores += 1
    assert scores > 100


def test_the_same_findings_in_any_order_are_the_same_risks() -> None:
    dice = random.Random(6)
    findings = [said(dice.choice(sorted(TACTICS)), dice.randint(5, 100), round(dice.uniform(0, 70), 1)) for _ in range(60)]
    expected = risks(findings)
    assert len(expected) >= 2
    for _ in range(10):
        assert risks(dice.sample(findings, len(findings))) == expected


def test_withdrawn_findings_other_agents_and_risks_do_not_count() -> None:
    findings = [said(FIRST_SEEN, 60, 5), said(DENY_BURST, 60, 5)]
    assert risk([findings[0], replace(findings[1], withdrawn=True)], at(6)) is None
    assert risk([findings[0], said(RISK, 100, 5)], at(6)) is None
    assert risk([findings[0], replace(findings[1], agent="")], at(6)) is None


def test_a_word_on_a_finding_raises_the_version_of_the_risk() -> None:
    findings = [said(FIRST_SEEN, 60, 5), said(DENY_BURST, 60, 5)]
    first = risk(findings, at(6))
    second = risk([findings[0], replace(findings[1], version=9)], at(6))
    assert first is not None
    assert second is not None
    assert (first.id, first.version, second.version) == (second.id, 6, 12)
    gone = taken_back(second, [findings[0], replace(findings[1], version=10, withdrawn=True)])
    assert (gone.id, gone.withdrawn, gone.version, gone.score) == (second.id, True, 13, second.score)


def test_it_names_some_calls_of_those_behind_it() -> None:
    many = tuple(f"{n:032x}" for n in range(100))
    found = risk([said(SECOND_HOLDER, 100, 5, calls=many, calls_count=500), said(LEAK, 70, 5, calls=many)], at(5))
    assert found is not None
    assert found.calls == many
    assert found.calls_count == 501
    assert found.started_us == at(5) - 5


def test_a_day_is_utc() -> None:
    assert day_of(START_US + DAY_US - 1) == START_US
