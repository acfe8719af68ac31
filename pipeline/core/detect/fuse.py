"""One risk per agent and UTC day: what the other detectors say of it, each for as long as it is news.

A finding is worth its score at its own time, half of it an hour later, and so on:

    points(finding, t) = score * 2^-((t - time) / 1 h)        for time <= t
    risk(t)            = sum over detectors of the most that one of its findings is worth at t
                         + 20 for each tactic beyond the first that a detector with at least 20 points stands for

Of each detector only the strongest finding counts: ten new domains are one agent that browses, and ten regular hosts are no
proof either. There is a finding where risk(t) reaches 100, or where two detectors of two tactics (`schemas.detectors.TACTICS`)
have at least 20 points each: a medium finding of an hour ago. The second alone may score as low as 60: it alerts, and a rule
with the default `min_score` does not act on it.

Risk only falls between findings, so the times of the findings are the only ones to look at, and what is said of a day is a
function of the set of findings, whatever their order. Time is the calls' own.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from schemas.detectors import RISK, TACTICS
from schemas.findings import Finding, Term, some_calls

HALF_LIFE_US: Final = 3_600_000_000
DAY_US: Final = 86_400_000_000

RISK_MIN: Final = 100.0
"""Points from which an agent is a risk by their sum."""

TACTIC_POINTS_MIN: Final = 20.0
"""Points from which a detector stands for its tactic: a finding of medium severity (40), an hour later."""

TACTIC_POINTS: Final = 20.0
"""What each further tactic adds: two medium findings of two tactics at one time make 40 + 40 + 20 = 100."""

FORGOTTEN_US: Final = DAY_US
"""Findings from so long before the day still count. 24 half-lives leave of 100 points less than 0.00001."""


def points(score: float, time_us: int, now_us: int) -> float:
    """What a finding of `time_us` is worth at `now_us`, to three decimals; nothing before its time."""
    if now_us < time_us:
        return 0.0
    return round(score * math.exp2(-(now_us - time_us) / HALF_LIFE_US), 3)


def day_of(time_us: int) -> int:
    """The start of the UTC day of a time."""
    return time_us - time_us % DAY_US


def risk(findings: Sequence[Finding], now_us: int) -> Finding | None:
    """What the findings of one agent amount to in the UTC day of `now_us`, up to then; None where it is no risk.

    `findings` are the agent's of that day and of the day before, withdrawn ones among them and each once, in its highest
    version; findings of `risk` and of other things than detectors are left out here. Those that someone has called false are
    for the caller to leave out. `now_us` is the time of a call, not of a clock.
    """
    day_us = day_of(now_us)
    known = [f for f in findings if f.detector in TACTICS and f.agent and day_us - FORGOTTEN_US <= f.time_us < day_us + DAY_US]
    live = sorted((f for f in known if not f.withdrawn), key=lambda f: (f.time_us, f.id))
    first_us: int | None = None
    best: tuple[float, int] | None = None
    for time_us in sorted({f.time_us for f in live if day_us <= f.time_us <= now_us}):
        worth = _strongest(live, time_us)
        if not _is_risk(worth):
            continue
        first_us = time_us if first_us is None else first_us
        total = _total(worth)
        if best is None or total > best[0]:
            best = (total, time_us)
    if first_us is None or best is None:
        return None
    return _finding(known, _strongest(live, best[1]), day_us, first_us, best[1])


def risks(findings: Sequence[Finding]) -> list[Finding]:
    """The risk of every UTC day in which one of these findings lies: what an agent's findings amount to, all of them."""
    days = sorted({day_of(f.time_us) for f in findings if f.detector in TACTICS})
    found = (risk(findings, day_us + DAY_US - 1) for day_us in days)
    return [one for one in found if one is not None]


def taken_back(said: Finding, findings: Iterable[Finding]) -> Finding:
    """That a risk does not hold any more: the same finding, withdrawn, at the version that `risk` would give it now."""
    return Finding(
        detector=RISK, subject=said.subject, window_us=said.window_us,
        version=max(said.version + 1, _version([f for f in findings if f.detector in TACTICS])),
        started_us=said.started_us, ended_us=said.ended_us, time_us=said.time_us, terms=said.terms, evidence=said.evidence,
        title=said.title, calls=said.calls, calls_count=said.calls_count, agent=said.agent, withdrawn=True, tenant=said.tenant,
    )  # fmt: skip


def risk_of(contributions: Sequence[Mapping[str, Any]], at_us: int) -> float:
    """The score of a finding of `risk`, computed again from its evidence (`contributions` and `at_us`)."""
    worth = [points(one["score"], one["time_us"], at_us) for one in contributions]
    strong = {one["tactic"] for one, value in zip(contributions, worth, strict=True) if value >= TACTIC_POINTS_MIN}
    return round(min(100.0, sum(worth) + TACTIC_POINTS * max(0, len(strong) - 1)), 3)


def _strongest(live: Sequence[Finding], now_us: int) -> dict[str, tuple[float, Finding]]:
    """Each detector's finding that is worth the most at a time, with what it is worth; the older one of equals."""
    found: dict[str, tuple[float, Finding]] = {}
    for finding in live:
        if finding.time_us > now_us:
            break  # they are sorted
        worth = points(finding.score, finding.time_us, now_us)
        if worth > 0 and (finding.detector not in found or worth > found[finding.detector][0]):
            found[finding.detector] = (worth, finding)
    return found


def _tactics(worth: Mapping[str, tuple[float, Finding]]) -> list[str]:
    return sorted({TACTICS[name] for name, (value, _) in worth.items() if value >= TACTIC_POINTS_MIN})


def _total(worth: Mapping[str, tuple[float, Finding]]) -> float:
    return sum(value for value, _ in worth.values()) + TACTIC_POINTS * max(0, len(_tactics(worth)) - 1)


def _is_risk(worth: Mapping[str, tuple[float, Finding]]) -> bool:
    return len(_tactics(worth)) >= 2 or _total(worth) >= RISK_MIN


def _version(known: Sequence[Finding]) -> int:
    """It only grows: every word on a finding raises that finding's version."""
    return sum(f.version for f in known)


def _finding(
    known: Sequence[Finding], worth: Mapping[str, tuple[float, Finding]], day_us: int, first_us: int, at_us: int
) -> Finding:
    parts = sorted(worth.values(), key=lambda part: (-part[0], part[1].id))
    tactics = _tactics(worth)
    terms = [
        Term(
            name=f.detector, value=value, points=value,
            why=f"finding {f.id} has {f.score:g} points, {(at_us - f.time_us) / 60e6:.0f} minutes before: {f.title}",
        )
        for value, f in parts
    ]  # fmt: skip
    if len(tactics) > 1:
        why = f"detectors of {len(tactics)} tactics agree: {', '.join(tactics)}"
        terms.append(Term(name="tactics", value=float(len(tactics)), points=TACTIC_POINTS * (len(tactics) - 1), why=why))
    agent = parts[0][1].agent
    calls = list(dict.fromkeys(call for _, f in parts for call in f.calls))
    return Finding(
        detector=RISK, subject=f"agent={agent}", window_us=day_us, version=_version(known), agent=agent,
        started_us=min(f.started_us for _, f in parts), ended_us=max(f.ended_us for _, f in parts), time_us=first_us,
        terms=tuple(terms), calls=some_calls(calls), calls_count=sum(f.calls_count for _, f in parts),
        title=f"{', '.join(f.detector for _, f in parts)} {'alone makes' if len(parts) == 1 else 'together make'}"
              f" agent {agent} a risk",
        evidence={
            "at_us": at_us,
            "half_life_us": HALF_LIFE_US,
            "contributions": [
                {"finding": f.id, "detector": f.detector, "tactic": TACTICS[f.detector], "score": f.score, "time_us": f.time_us,
                 "points": value}
                for value, f in parts
            ],
        },
        tenant=parts[0][1].tenant,
    )  # fmt: skip
