"""A refused call: HTTP Activity (class 4002) of what an HTTP client asked, API Activity (class 6003) of an MCP call.

`metadata.uid` is the call's id, so a call that is read twice is one event. A call that would have been refused and was let out
(mode `shadow`, `best_effort`) says Observed and Detected, not Denied and Blocked. API Activity has no profile security_control
in 1.1.0: action and disposition stand in `unmapped` there.
"""

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from pipeline.core.ocsf.event import (
    DENIED,
    FAILURE,
    OBSERVED,
    OTHER,
    SEVERITY_IDS,
    Alert,
    Dialect,
    actor_of,
    add_chain,
    base,
    cut,
    endpoint,
    some,
    source_of,
)
from schemas.errors import AgentFault
from schemas.vocabulary import parse_uid

HTTP: Final = 4002
API: Final = 6003

_METHODS: Final[Mapping[str, int]] = {
    "CONNECT": 1, "DELETE": 2, "GET": 3, "HEAD": 4, "OPTIONS": 5, "POST": 6, "PUT": 7, "TRACE": 8, "PATCH": 9,
}  # fmt: skip
_PATCH: Final = 9
_READS: Final = ("read", "list", "get", "discover")

BLOCKED: Final = 2
DETECTED: Final = 15
ACCESS_REVOKED: Final = 24
_DISPOSITIONS: Final = {BLOCKED: "Blocked", DETECTED: "Detected", ACCESS_REVOKED: "Access Revoked"}
_ACTIONS: Final = {DENIED: "Denied", OBSERVED: "Observed"}

STATUSES: Final[Mapping[str, int]] = {"stale": 503, "overloaded": 503}
"""What a door answers for a reason; 403 for every other. A refusal's record has no status of its own."""
FORBIDDEN: Final = 403

_COPIED: Final = (
    "call_id", "agent", "root", "session", "credential", "proof", "action", "resource", "domain", "reason", "mode",
    "policy_digest", "door", "enforcer", "outcome",
)  # fmt: skip


def refusal_alert(row: Mapping[str, Any], *, speaks: Dialect) -> Alert:
    """A row of the view `calls` whose verdict is `deny`, with `time_us` and `stored_us`."""
    action = row["action"]
    family, _, word = action.partition(":")
    http = family in ("http", "tcp")
    shadow = row["mode"] != "enforce"
    act = OBSERVED if shadow else DENIED
    disposition = DETECTED if shadow else ACCESS_REVOKED if row["reason"] == "revoked" else BLOCKED
    controlled = http or speaks.modern
    profiles = (["security_control"] if controlled else []) + (["host"] if http else [])
    traced = speaks.modern and row["trace_id"].strip("0")
    activity = _http_activity(word, speaks) if http else _api_activity(word)
    event = base(
        speaks, HTTP if http else API, activity, uid=row["call_id"], time_us=row["time_us"], tenant=row["tenant"],
        severity=SEVERITY_IDS["medium" if row["reason"] == "revoked" else "low"], stored_us=row["stored_us"],
        code=row["reason"], log="refusals", profiles=profiles + (["trace"] if traced else []),
        message=f"{row['agent'] or 'nobody'} was {'not ' if shadow else ''}refused {action} {row['resource']}: {row['reason']}",
        activity_name=cut(word) if activity == OTHER else "", correlation=row["trace_id"] if row["trace_id"].strip("0") else "",
    )  # fmt: skip
    event |= {"status_id": FAILURE, "status": "Failure", "status_detail": cut(row["reason"]), "count": 1}
    event["actor"] = _actor(row)
    event["src_endpoint"] = source_of(row["client"], row["enforcer"], row["door"])
    event["unmapped"] = {name: cut(row[name]) for name in _COPIED if row[name]} | {
        "policies": some(list(row["policies"])), "epoch": row["epoch"], "query_bytes": row["query_bytes"],
        "query_bits": row["query_bits"], "action_taken": _ACTIONS[act], "disposition": _DISPOSITIONS[disposition],
    }  # fmt: skip
    if controlled:
        event |= {"action_id": act if speaks.modern or act == DENIED else OTHER, "disposition_id": disposition}
        event |= {"action": _ACTIONS[act]} if event["action_id"] == OTHER else {}
        if policies := list(row["policies"]):
            event["authorizations"] = [{"decision": "deny", "policy": {"uid": cut(one)}} for one in policies[:10]]
    if traced:
        event["trace"] = {"uid": row["trace_id"]}
    event |= _http(row, word, speaks) if http else _api(row, word)
    add_chain(event, row)
    return Alert(uid=row["call_id"], key=row["agent"] or row["enforcer"], time_us=row["time_us"], body=event)


def _http_activity(method: str, speaks: Dialect) -> int:
    found = _METHODS.get(method, OTHER)
    return OTHER if found == _PATCH and not speaks.modern else found


def _api_activity(operation: str) -> int:
    return 2 if operation.rpartition("/")[2] in _READS else OTHER


def _actor(row: Mapping[str, Any]) -> dict[str, Any]:
    """An agent, its session; where nobody is known, the enforcer says that."""
    return actor_of(row["agent"], row["credential"], row["session"]) or {"invoked_by": cut(row["enforcer"] or "unknown")}


def _named(resource: str) -> str:
    with contextlib.suppress(AgentFault):
        return parse_uid(resource)[1]
    return resource


def _http(row: Mapping[str, Any], method: str, speaks: Dialect) -> dict[str, Any]:
    named = _named(row["resource"])
    text = named.rpartition(":")[2]
    port = int(text) if text.isascii() and text.isdigit() and int(text) <= 65535 else 0
    host = row["host"] or named
    url: dict[str, Any] = {"path": cut(row["path"] or "/")}
    where = endpoint(host, port=port, address=row["address"], domain=row["domain"])
    if "hostname" in where:
        url["hostname"] = where["hostname"]
    if port:
        url["port"] = port
    if row["scheme"]:
        url["scheme"] = cut(row["scheme"])
    found: dict[str, Any] = {
        "http_request": {"uid": row["call_id"], "url": url},
        "http_response": {"code": row["status"] or STATUSES.get(row["reason"], FORBIDDEN)},
        "dst_endpoint": where or {"name": cut(named or "unknown")},
    }  # fmt: skip
    if _http_activity(method, speaks) != OTHER:  # OCSF lists the methods that there are; any other stands in `unmapped.action`
        found["http_request"]["http_method"] = method
    return found


def _api(row: Mapping[str, Any], operation: str) -> dict[str, Any]:
    named = _named(row["resource"])
    server = named.partition("/")[0]
    api: dict[str, Any] = {"operation": cut(operation or row["action"]), "request": {"uid": row["call_id"]}}
    if server:
        api["service"] = {"name": cut(server)}
    kind = row["resource"].partition("::")[0].lower() or "resource"
    touched = {"type": cut(kind), "name": cut(named or "unknown"), "data": {"uid": cut(row["resource"])}}
    return {"api": api, "resources": [touched]}
