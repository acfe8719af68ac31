"""What every event has, and how large it may be.

    unmapped     flat copies of what OCSF has no attribute for, among them the chain of principals
    enrichments  the chain of principals, on `actor.user.uid`

Nothing here holds a secret: a credential is the hash that names it, a path has no query. Texts are cut, lists end, and a whole
event stays below EVENT_BYTES_MAX, so that no agent can make an event as large as it likes.
"""

import contextlib
import hashlib
import ipaddress
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from schemas.errors import AgentFault
from schemas.limits import CHAIN_LINKS_MAX
from schemas.vocabulary import parse_uid

V1_1: Final = "1.1.0"
V1_8: Final = "1.8.0"
VERSIONS: Final = (V1_8, V1_1)

EVENT_BYTES_MAX: Final = 64 << 10
"""Bytes of an event as JSON. Evidence (16 KiB) and the calls of a finding fit; what does not is cut, and the event says so."""

TEXT_CHARS_MAX: Final = 1024
"""Characters of one text in an event."""

SQL_CHARS_MAX: Final = 8192
SHORT_BYTES: Final = 256
"""Bytes of one text in an event that has to be made small: the name of a host has 253 at most."""

ITEMS_MAX: Final = 100
"""Items of one list in an event."""

SEVERITY_IDS: Final[Mapping[str, int]] = {"low": 2, "medium": 3, "high": 4, "critical": 5}
INFORMATIONAL: Final = 1
SUCCESS: Final = 1
FAILURE: Final = 2
OTHER: Final = 99

DENIED: Final = 2
"""`action_id` of the profile security_control; ALLOWED and, from 1.8.0 on, OBSERVED beside it."""
ALLOWED: Final = 1
OBSERVED: Final = 3

_CATEGORIES: Final[Mapping[int, tuple[str, str]]] = {
    2004: ("Detection Finding", "Findings"), 3004: ("Entity Management", "Identity & Access Management"),
    4002: ("HTTP Activity", "Network Activity"), 6003: ("API Activity", "Application Activity"),
}  # fmt: skip
"""Class uid -> its caption and its category's."""

_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME: Final = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}\.)*{_LABEL}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a sink's events are spelt: the version of OCSF, and which Wardline says so."""

    version: str = V1_8
    product_version: str = ""

    @property
    def modern(self) -> bool:
        """Whether events have what came after 1.1.0."""
        return self.version != V1_1


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One event on its way. Events of one `key` reach a consumer in the order in which they were read."""

    uid: str
    """What a consumer dedupes by: `metadata.uid`."""
    key: str
    """The agent; of an event that is about none, what it is about."""
    time_us: int
    body: Mapping[str, Any]


def uid_of(kind: str, *parts: object) -> str:
    """A name for an event that depends on nothing but the row that it is made of: 32 hex digits."""
    return hashlib.sha256(json.dumps([kind, *map(str, parts)]).encode()).hexdigest()[:32]


def cut(text: object, limit: int = TEXT_CHARS_MAX) -> str:
    """A text with an end: the beginning and `...` of a longer one."""
    whole = str(text)
    return whole if len(whole) <= limit else whole[: limit - 3] + "..."


def some(values: Sequence[Any], limit: int = ITEMS_MAX) -> list[Any]:
    """A list with an end, its texts too."""
    return [cut(one) if isinstance(one, str) else one for one in values[:limit]]


def ms(us: int) -> int:
    """OCSF's times are milliseconds since 1970."""
    return int(us) // 1000


def loaded(text: str) -> Any:
    """JSON of the store; what is none (it was cut, or is not ours) as a text. Numbers that JSON does not have are texts."""
    try:
        return json.loads(text, parse_constant=str, parse_float=_finite)
    except (ValueError, RecursionError):
        return cut(text)


def _finite(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def base(
    speaks: Dialect, class_uid: int, activity: int, *, uid: str, time_us: int, severity: int, message: str, tenant: str,
    stored_us: int, code: str, log: str, profiles: Sequence[str] = (), activity_name: str = "", correlation: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The attributes that every event has."""
    class_name, category = _CATEGORIES[class_uid]
    product = {"name": "Wardline", "vendor_name": "Wardline"}
    if speaks.product_version:
        product["version"] = speaks.product_version
    metadata: dict[str, Any] = {
        "version": speaks.version, "uid": uid, "product": product, "tenant_uid": cut(tenant), "event_code": cut(code),
        "log_name": log, "log_provider": "wardline", "logged_time": ms(stored_us), "original_time": str(time_us),
    }  # fmt: skip
    if profiles:
        metadata["profiles"] = list(profiles)
    if correlation:
        metadata["correlation_uid"] = correlation
    event: dict[str, Any] = {
        "metadata": metadata, "class_uid": class_uid, "class_name": class_name, "category_uid": class_uid // 1000,
        "category_name": category, "activity_id": activity, "type_uid": class_uid * 100 + activity, "time": ms(time_us),
        "timezone_offset": 0, "severity_id": severity, "message": cut(message),
    }  # fmt: skip
    if activity_name:
        event["activity_name"] = activity_name
    return event


def user_of(agent: str, credential: str = "") -> dict[str, Any]:
    """An agent as OCSF's `user`: OCSF's `agent` is a sensor, and `ai_agent` comes with 1.9."""
    user: dict[str, Any] = {"name": cut(agent), "uid": cut(f'Agent::"{agent}"'), "type": "AI agent", "type_id": OTHER}
    if credential:
        user["credential_uid"] = cut(credential)
    return user


def actor_of(agent: str, credential: str = "", session: str = "") -> dict[str, Any]:
    """Who acts, or nothing where that is not said."""
    actor: dict[str, Any] = {}
    if agent:
        actor["user"] = user_of(agent, credential)
    if session:
        actor["session"] = {"uid": cut(session)}
    return actor


def is_ip(text: str) -> bool:
    """Whether a text is an address, without a zone."""
    try:
        return ipaddress.ip_address(text) is not None and "%" not in text
    except ValueError:
        return False


def endpoint(host: str, *, port: int = 0, address: str = "", domain: str = "") -> dict[str, Any]:
    """A network endpoint, with those attributes whose form the texts have."""
    found: dict[str, Any] = {}
    if is_ip(host):
        found["ip"] = host
    elif host:
        found["hostname" if _HOSTNAME.fullmatch(host) else "name"] = cut(host)
    if is_ip(address):
        found["ip"] = address
    if found and port:
        found["port"] = port
    if found and domain:
        found["domain"] = cut(domain)
    return found


def source_of(client: str, enforcer: str, door: str) -> dict[str, Any]:
    """Where a call came from: the address of the caller's connection, or the enforcer that it was on."""
    found = endpoint(client) if is_ip(client) else {}
    return found | {"name": cut(f"{enforcer}/{door}" if door else enforcer or "unknown")}


def add_chain(event: dict[str, Any], row: Mapping[str, Any]) -> None:
    """Say for whom the agent acts: `enrichments` for programs that know the slot, flat copies in `unmapped` for the others."""
    chain = list(row.get("chain") or ())[:CHAIN_LINKS_MAX]
    if not chain:
        return
    assurance = list(row.get("assurance") or ())
    links = []
    for number, uid in enumerate(chain):
        kind, name = "", uid
        with contextlib.suppress(AgentFault):
            kind, name = parse_uid(uid)
        link = {"uid": cut(uid), "kind": cut(kind), "name": cut(name)}
        if 0 < number <= len(assurance):
            link["assurance"] = cut(assurance[number - 1])
        links.append(link)
    event.setdefault("enrichments", []).append(
        {
            "name": "actor.user.uid", "value": cut(chain[-1]), "type": "principal_chain", "provider": "wardline",
            "data": {"links": links, "depth": len(links), "root": links[0]["uid"]},
        }
    )  # fmt: skip
    event.setdefault("unmapped", {}).update(
        chain=[link["uid"] for link in links], chain_root=links[0]["uid"], chain_depth=len(links),
        chain_assurance=some(assurance),
    )  # fmt: skip


def encode(body: Mapping[str, Any]) -> bytes:
    """An event as JSON in one line, all ASCII: no transport has to know of an encoding, and a lone surrogate is no harm."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


Step = Callable[[dict[str, Any]], None]


def _without(*path: str) -> Step:
    def step(event: dict[str, Any]) -> None:
        at: Any = event
        for name in path[:-1]:
            at = at[0] if isinstance(at, list) and at else at
            at = at.get(name) if isinstance(at, dict) else None
        at = at[0] if isinstance(at, list) and at else at
        if isinstance(at, dict):
            at.pop(path[-1], None)

    return step


def _shorter(value: Any) -> Any:
    """The same with no text longer than SHORT_BYTES as JSON: a host's name keeps its form, an id of ours its whole length."""
    if isinstance(value, str):
        while len(json.dumps(value)) - 2 > SHORT_BYTES:
            value = cut(value, max(8, min(SHORT_BYTES, len(value) * 2 // 3)))
        return value
    if isinstance(value, dict):
        return {name: _shorter(one) for name, one in value.items()}
    return [_shorter(one) for one in value[:10]] if isinstance(value, list) else value


def _shorten(event: dict[str, Any]) -> None:
    event |= _shorter(event)


_STEPS: Final[tuple[tuple[str, Step], ...]] = (
    ("evidence", _without("evidences", "data")),
    ("sql", _without("unmapped", "sql")),
    ("calls", _without("finding_info", "related_events")),
    ("terms", _without("unmapped", "terms")),
    ("desc", _without("finding_info", "desc")),
    ("texts", _shorten),
    ("evidence", _without("evidences")),
    ("enrichments", _without("enrichments")),
    ("chain", _without("unmapped", "chain")),
    ("unmapped", _without("unmapped")),
    ("resources", _without("resources")),
    ("authorizations", _without("authorizations")),
)
"""What goes first when an event is too large. All of it is in the store, under the ids that stay."""


def fitted(alert: Alert, limit: int = EVENT_BYTES_MAX) -> bytes:
    """An event as JSON within `limit` bytes, or a little above 4 KiB where that is more. What was taken out is named in
    `unmapped.truncated`, and the event stays valid."""
    data = encode(alert.body)
    if len(data) <= limit:
        return data
    whole = len(data)
    event = json.loads(data)
    if event["metadata"]["version"] != V1_1:
        event["metadata"] |= {"is_truncated": True, "untruncated_size": whole}
    gone: list[str] = []
    for name, step in _STEPS:
        step(event)
        if name not in gone:
            gone.append(name)
        event.setdefault("unmapped", {})["truncated"] = gone
        data = encode(event)
        if len(data) <= limit:
            return data
    return data
