"""Findings, and what rules did about them, as Detection Findings (class 2004).

    open, not told before       Create, status New
    open, told before           Update, status In Progress
    withdrawn                   Close, status Resolved: an older call that came in late has changed what was seen
    false                       Close, status Suppressed: somebody has said so of its detector and subject
    a rule has acted on it      Update, with the disposition Access Revoked where it has revoked

All of them have the finding's id as `finding_info.uid`; `metadata.uid` differs with its version and state.
"""

from collections.abc import Mapping
from typing import Any, Final

from pipeline.core.ocsf.event import (
    DENIED,
    INFORMATIONAL,
    ITEMS_MAX,
    SEVERITY_IDS,
    SQL_CHARS_MAX,
    Alert,
    Dialect,
    actor_of,
    add_chain,
    base,
    cut,
    endpoint,
    loaded,
    ms,
    some,
    uid_of,
)
from schemas.findings import TACTICS

CLASS: Final = 2004
CREATE: Final = 1
UPDATE: Final = 2
CLOSE: Final = 3
_NAMES: Final = {CREATE: "Create", UPDATE: "Update", CLOSE: "Close"}

NEW: Final = 1
IN_PROGRESS: Final = 2
SUPPRESSED: Final = 3
RESOLVED: Final = 4
_STATUS: Final = {NEW: "New", IN_PROGRESS: "In Progress", SUPPRESSED: "Suppressed", RESOLVED: "Resolved"}

ACCESS_REVOKED: Final = 24

_RULE, _BEHAVIOURAL, _STATISTICAL = 1, 2, 3
_ANALYTICS: Final[Mapping[str, int]] = {
    "first-seen": _BEHAVIOURAL, "second-holder": _RULE, "leak": _STATISTICAL, "beacon": _STATISTICAL, "deny-burst": _RULE,
    "volume": _STATISTICAL, "sequence": _BEHAVIOURAL, "chain": _RULE, "risk": _STATISTICAL, "limit": _RULE,
}  # fmt: skip
_TACTIC_NAMES: Final[Mapping[str, str]] = {
    "TA0002": "Execution", "TA0004": "Privilege Escalation", "TA0006": "Credential Access", "TA0007": "Discovery",
    "TA0010": "Exfiltration", "TA0011": "Command and Control",
}  # fmt: skip
_RISK_LEVELS: Final[Mapping[str, int]] = {"low": 1, "medium": 2, "high": 3, "critical": 4}


def finding_alert(row: Mapping[str, Any], *, told: bool, speaks: Dialect, why: str = "", because: str = "") -> Alert:
    """One version of a finding. `told`: a version of it was sent before; `why` is an operator's reason for calling it false.

    `because` names what else than a new version makes it worth an event: the entry of an exception, made or ended.
    """
    state = row["state"]
    activity, status = {
        "withdrawn": (CLOSE, RESOLVED), "false": (CLOSE, SUPPRESSED)
    }.get(state, (UPDATE, IN_PROGRESS) if told else (CREATE, NEW))  # fmt: skip
    uid = uid_of("finding", row["id"], row["version"], state, *([because] if because else []))
    event = _event(row, activity, status, uid=uid, speaks=speaks, message=row["title"])
    if state != "open":
        event["status_detail"] = cut(f"{state}: {why}" if why else state)
    return _alert(row, uid, event)


def response_alert(row: Mapping[str, Any], *, speaks: Dialect) -> Alert:
    """What a rule did about a finding: its row, with `rule`, `selector`, `outcome`, `epoch`, `for_s`, `why` and `acted_us`."""
    outcome = row["outcome"]
    uid = uid_of("response", row["id"], row["rule"], row["selector"], outcome, row["epoch"])
    said = {
        "revoked": f"rule {row['rule']} revoked {row['selector']} (epoch {row['epoch']})",
        "limited": f"rule {row['rule']} did not revoke {row['selector']}: its limit is reached",
        "excepted": f"rule {row['rule']} did not revoke {row['selector']}: an exception holds",
    }.get(outcome, f"rule {row['rule']} could not revoke {row['selector']}")
    revoked = outcome == "revoked"
    event = _event(row, UPDATE, IN_PROGRESS, uid=uid, speaks=speaks, message=f"{said}: {row['title']}", revoked=revoked,
                   time_us=row["acted_us"])  # fmt: skip
    event["status_detail"] = cut(f"{said}; {row['why']}" if row["why"] else said)
    if revoked:
        event |= {"action_id": DENIED, "disposition_id": ACCESS_REVOKED}
    event["unmapped"] |= {
        "response_rule": cut(row["rule"]), "response_state": outcome, "response_selector": cut(row["selector"]),
        "response_epoch": row["epoch"], "response_for_s": row["for_s"],
    }  # fmt: skip
    return _alert(row, uid, event)


def sample_alert(*, sink: str, time_us: int, tenant: str, speaks: Dialect) -> Alert:
    """A finding that nobody has made, for `wardline siem test`: Informational, and its title says what it is."""
    title = f"Wardline test event for the sink {sink}: nothing has happened"
    row = {
        "id": uid_of("sample", sink, time_us), "version": 1, "detector": "test", "subject": f"sink={sink}", "agent": "",
        "domain": "", "host": "", "credential": "", "session": "", "enforcer": "", "started_us": time_us, "ended_us": time_us,
        "time_us": time_us, "score": 0.0, "severity": "", "title": title, "state": "open", "terms": "[]", "evidence": "{}",
        "calls": [], "calls_count": 0, "sql": "", "tenant": tenant, "worker": "", "stored_us": time_us,
    }  # fmt: skip
    return finding_alert(row, told=False, speaks=speaks)


def _alert(row: Mapping[str, Any], uid: str, event: dict[str, Any]) -> Alert:
    return Alert(uid=uid, key=row["agent"] or row["subject"], time_us=row["time_us"], body=event)


def _event(
    row: Mapping[str, Any], activity: int, status: int, *, uid: str, speaks: Dialect, message: str, revoked: bool = False,
    time_us: int = 0,
) -> dict[str, Any]:  # fmt: skip
    detector, severity = row["detector"], row["severity"]
    event = base(
        speaks, CLASS, activity, uid=uid, time_us=time_us or row["time_us"], severity=SEVERITY_IDS.get(severity, INFORMATIONAL),
        message=message, tenant=row["tenant"], stored_us=row["stored_us"], code=detector, log="findings",
        profiles=["security_control"] if revoked else [], activity_name=_NAMES[activity], correlation=row["id"],
    )  # fmt: skip
    event |= {
        "start_time": ms(row["started_us"]), "end_time": ms(row["ended_us"]), "count": max(1, int(row["calls_count"])),
        "status_id": status, "status": _STATUS[status], "risk_score": round(row["score"]),
        "risk_level_id": _RISK_LEVELS.get(severity, 0), "finding_info": _info(row, speaks), "evidences": [_evidence(row)],
    }  # fmt: skip
    if speaks.modern:
        event["is_alert"] = True
    if resources := _resources(row):
        event["resources"] = resources
    event["unmapped"] = {
        name: cut(row[name])
        for name in ("subject", "agent", "domain", "host", "credential", "session", "enforcer", "worker")
        if row[name]
    } | {
        "finding_version": row["version"], "finding_state": row["state"], "score": row["score"],
        "calls_count": row["calls_count"], "terms": _terms(row["terms"]), "sql": cut(row["sql"], SQL_CHARS_MAX),
    }  # fmt: skip
    add_chain(event, row)
    return event


def _info(row: Mapping[str, Any], speaks: Dialect) -> dict[str, Any]:
    detector = row["detector"]
    info: dict[str, Any] = {
        "uid": row["id"], "title": cut(row["title"]), "types": [cut(detector)], "created_time": ms(row["time_us"]),
        "first_seen_time": ms(row["started_us"]), "last_seen_time": ms(row["ended_us"]), "data_sources": ["wardline.calls"],
        "modified_time": ms(row["stored_us"]), "desc": cut(_words(row)),
        "analytic": {"name": cut(detector), "uid": cut(detector), "type_id": _ANALYTICS.get(detector, 0)},
        "related_events": [{"uid": cut(call)} for call in list(row["calls"])[:ITEMS_MAX]],
    }  # fmt: skip
    if not info["related_events"]:
        del info["related_events"]
    elif speaks.modern:
        info["related_events_count"] = row["calls_count"]
    if tactic := TACTICS.get(detector):
        info["attacks"] = [{"tactic": {"uid": tactic, "name": _TACTIC_NAMES[tactic]}}]
    return info


def _words(row: Mapping[str, Any]) -> str:
    """The score term by term, for whoever reads the event and nothing else."""
    terms = _terms(row["terms"])
    parts = [f"{one['points']:g} points: {one['name']} = {one['value']:g} {one['why']}".rstrip() for one in terms]
    return "; ".join([f"{row['detector']} of {row['subject']}, score {row['score']:g}", *parts])


def _terms(text: str) -> list[dict[str, Any]]:
    """The terms of a score, with an end. A row that somebody else wrote may hold anything."""
    found = loaded(text)
    terms = []
    for term in found[:ITEMS_MAX] if isinstance(found, list) else ():
        if isinstance(term, dict) and all(isinstance(term.get(name), int | float) for name in ("value", "points")):
            terms.append({
                "name": cut(term.get("name", ""), 128), "value": term["value"], "points": term["points"],
                "why": cut(term.get("why", ""), 256),
            })  # fmt: skip
    return terms


def _evidence(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"data": loaded(row["evidence"])}
    if actor := actor_of(row["agent"], row["credential"], row["session"]):
        found["actor"] = actor
    if where := endpoint(row["host"] or row["domain"], domain=row["domain"]):
        found["dst_endpoint"] = where
    return found


def _resources(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    named = [("AI agent", row["agent"]), ("domain", row["domain"]), ("host", row["host"]), ("session", row["session"])]
    found: list[dict[str, Any]] = [{"type": kind, "name": cut(name)} for kind, name in named if name]
    if row["credential"]:
        found.append({"type": "credential", "uid": cut(row["credential"])})
    return some(found)
