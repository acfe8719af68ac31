"""Rows of the store as the process `siem` reads them, with all that a finding, a revocation or a refused call may have."""

import json
from typing import Any

from schemas.findings import LEAK, Finding, Term, finding_row

NOW_US = 1_790_000_000 * 10**6
CHAIN = ['User::"alice"', 'Agent::"planner"', 'Agent::"researcher"']


def finding(number: int = 1, **fields: Any) -> dict[str, Any]:
    """A leak that agent `researcher` makes, unless `fields` say otherwise: as the shell reads it from the view `findings`."""
    made = Finding(
        detector=LEAK, subject=f"agent=researcher domain=d{number}.example", window_us=NOW_US, version=3, started_us=NOW_US,
        ended_us=NOW_US + 5, time_us=NOW_US + 4, terms=(Term(name="bits", value=2048.0, points=90.0, why="of 1,024 allowed"),),
        evidence={"bits": 2048, "names": ["a.d.example", "b.d.example"]}, title=f"researcher leaks to d{number}.example",
        calls=tuple(f"{n:032x}" for n in range(1, 4)), calls_count=3, agent="researcher", domain=f"d{number}.example",
        host=f"x.d{number}.example", credential="c" * 64, session="s-1", enforcer="enforce-1",
    )  # fmt: skip
    row = finding_row(made, "work-1")
    row = {f"{name}_us" if name in ("started", "ended", "time") else name: value for name, value in row.items()}
    context = {"state": "open", "stored_us": NOW_US + 10, "chain": list(CHAIN), "assurance": ["signed", "issued"]}
    return row | context | fields


def response(number: int = 1, **fields: Any) -> dict[str, Any]:
    """What rule `leaks` did about `finding(number)`."""
    done = {"rule": "leaks", "selector": "agent:researcher", "outcome": "revoked", "epoch": 9, "for_s": 3600, "why": "",
            "acted_us": NOW_US + 20}  # fmt: skip
    return finding(number) | done | fields


def revocation(**fields: Any) -> dict[str, Any]:
    """An entry of the control log that revokes agent `researcher`."""
    value = {"kind": "agent", "name": "researcher", "cascade": True, "reason": "leaks", "not_before": 0,
             "expires": 1_790_003_600}  # fmt: skip
    row = {"journal": 1, "epoch": 9, "name": "agent*:researcher", "value": json.dumps(value), "actor": "rule leaks",
           "time_us": NOW_US, "tenant": "default", "stored_us": NOW_US + 10}  # fmt: skip
    return row | fields


def refusal(**fields: Any) -> dict[str, Any]:
    """A refused POST of agent `researcher`."""
    row = {
        "call_id": f"{77:032x}", "time_us": NOW_US, "stored_us": NOW_US, "door": "door-1", "tenant": "default",
        "session": "s-1", "agent": "researcher", "root": 'User::"alice"', "chain": list(CHAIN),
        "assurance": ["signed", "issued"], "credential": "c" * 64, "proof": "jws", "action": "http:POST",
        "resource": 'Host::"paste.example:443"', "scheme": "https", "host": "paste.example", "domain": "paste.example",
        "address": "", "client": "10.1.2.3", "path": "/upload", "mode": "enforce", "policies": ["no-paste"],
        "reason": "forbid", "policy_digest": "d" * 64, "epoch": 4, "outcome": "refused", "status": 0, "query_bytes": 12,
        "query_bits": 40, "trace_id": "ab" * 16, "enforcer": "enforce-1",
    }  # fmt: skip
    return row | fields
