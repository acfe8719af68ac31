"""What control revoked, and what was lifted again, as Entity Management events (class 3004).

A selector names an agent, a principal, a key, a token, a session, a destination, a grant or an issuer. Account Change (3001)
needs a user and Authentication (3002) a login, and most of these are neither; API Activity (6003) needs a source endpoint,
which a rule of ours and a command over a unix socket do not have, and would say that a call was made and not what is in force.
So the revocation itself is the managed entity: Create puts it in force, Delete is its end, in both versions of OCSF. From 1.8.0
on the profile security_control says the disposition too: Access Revoked, Restored.
"""

from collections.abc import Mapping
from typing import Any, Final

from pipeline.core.ocsf.event import (
    ALLOWED,
    DENIED,
    INFORMATIONAL,
    OTHER,
    SEVERITY_IDS,
    SUCCESS,
    Alert,
    Dialect,
    base,
    cut,
    loaded,
    uid_of,
)

CLASS: Final = 3004
CREATE: Final = 1
DELETE: Final = 4
ACCESS_REVOKED: Final = 24
RESTORED: Final = 9

CONTROL: Final = "control"
"""The actor of an entry that nobody asked for: the expiry of one."""


def revocation_alert(row: Mapping[str, Any], *, speaks: Dialect) -> Alert:
    """One entry of the control log: `journal`, `epoch`, `name` (the selector), `value` (JSON; empty: it is gone), `actor`,
    `time_us`, `tenant`, `stored_us`."""
    selector, actor, made = row["name"], row["actor"], bool(row["value"])
    value = loaded(row["value"]) if made else {}
    value = value if isinstance(value, dict) else {}
    kind, _, name = selector.partition(":")
    uid = uid_of("revocation", row["journal"], row["epoch"], selector)
    how = "revoked" if made else "expired" if actor == CONTROL else "lifted"
    reason = cut(value.get("reason", ""))
    by = f" by {actor}" if actor and actor != CONTROL else ""
    event = base(
        speaks, CLASS, CREATE if made else DELETE, uid=uid, time_us=row["time_us"], tenant=row["tenant"],
        severity=SEVERITY_IDS["medium"] if made else INFORMATIONAL, stored_us=row["stored_us"], code=how, log="revocations",
        message=f"{selector} {how}{by}" + (f": {reason}" if reason else ""),
        profiles=["security_control"] if speaks.modern else ["host"], activity_name="Create" if made else "Delete",
    )  # fmt: skip
    entity: dict[str, Any] = {
        "name": cut(selector), "uid": cut(f"revocation/{selector}"), "type": "Revocation", "version": str(row["epoch"]),
        "data": {
            "kind": cut(kind.rstrip("*")), "name": cut(name), "cascade": kind.endswith("*"), "epoch": row["epoch"],
            **{field: value[field] for field in ("not_before", "expires") if isinstance(value.get(field), int)},
        },
    }  # fmt: skip
    if speaks.modern:
        entity["type_id"] = OTHER
    event |= {
        "entity": entity, "status_id": SUCCESS, "status": "Success", "status_detail": how,
        "actor": {"user": {"name": cut(actor or "unknown"), "type_id": 0}},
        "unmapped": {
            "selector": cut(selector), "state": how, "epoch": row["epoch"], "journal": row["journal"], "by": cut(actor),
            "reason": reason, "disposition": "Access Revoked" if made else "Restored",
        },
    }  # fmt: skip
    if reason:
        event["comment"] = reason
    if speaks.modern:
        event |= {"action_id": DENIED if made else ALLOWED, "disposition_id": ACCESS_REVOKED if made else RESTORED}
    return Alert(uid=uid, key=name if kind.rstrip("*") == "agent" else selector, time_us=row["time_us"], body=event)
