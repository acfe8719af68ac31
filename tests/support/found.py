"""Findings as tests need them: right but for what is given."""

from typing import Any

from schemas.detectors import LEAK
from schemas.findings import Finding, Term

NOW_US = 1_790_000_000_000_000


def finding(agent: str = "reader", *, score: float = 95.0, at_us: int = NOW_US, **given: Any) -> Finding:
    """A leak by `agent`, whose last call was at `at_us`."""
    detector = given.pop("detector", LEAK)
    fields: dict[str, Any] = {
        "detector": detector, "subject": f"agent={agent} domain=evil.example", "window_us": at_us - at_us % 86_400_000_000,
        "version": 3, "started_us": at_us - 2_000_000, "ended_us": at_us, "time_us": at_us - 1_000_000, "agent": agent,
        "domain": "evil.example", "title": f"{agent} tells evil.example 2,310 bits in 5 names",
        "terms": (Term(name="bits", value=2310.0, points=score, why="new names"),), "evidence": {"bits": 2310.0, "names": 5},
        "calls": (f"{1:016x}{7:016x}",), "calls_count": 5,
    }  # fmt: skip
    return Finding(**(fields | given))
