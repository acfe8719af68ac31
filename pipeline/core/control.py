"""What control knows, and what each request makes of it: entries of the control log, in one order of epochs.

    request -> change (a new epoch for each entry; nothing is changed yet) -> the journal has it -> apply

Pure: time and names come in as arguments. A request that cannot be is an OperatorFault and leaves everything as it is.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.core import requests
from pipeline.core.standing import Standing, identities_of, size_of
from schemas.control import HEAD_BYTES, HEARTBEAT, PAUSE, POLICY, Entry, exception_name
from schemas.errors import OperatorFault
from schemas.limits import ENTRY_BYTES_MAX
from schemas.selectors import Selector, make_selector
from schemas.vocabulary import shown

REMOVED: Final = "agent removed"
"""The reason of the revocation that stands for a removed agent; adding the agent again lifts it."""

OWN: Final = "control"
"""The actor of what control does by itself: expiry, its first key."""

EXPIRED_MAX: Final = 10_000
"""Revocations and exceptions that end in one change."""

LIMITED: Final = frozenset(
    {"revoke", "revoke-many", "exception-add", "agent-add", "agent-rotate", "enforcer-add", "worker-add"}
)
"""Requests that the limit on live bytes holds for. `pause` always fits, and so does what makes the log smaller."""


class Already(OperatorFault):
    """A revocation that stands may not be replaced by this one (`only_new`), which may end sooner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a request makes: all of it or nothing, in consecutive epochs."""

    entries: tuple[Entry, ...]
    payloads: tuple[bytes, ...]
    result: Mapping[str, Any]


class Log(Standing):
    """What stands, and the next change of it."""

    def change(self, request: Mapping[str, Any], *, now_ns: int, actor: str) -> Change:
        """What a request would change; it is not changed before `apply`. Raises OperatorFault."""
        do = requests.checked(request)
        made: dict[str, Mapping[str, Any] | None] = {}
        result = self._do(do, request, made, now_ns)
        return self._made(made, now_ns, actor, result, limited=do in LIMITED)

    def expired(self, now_ns: int) -> Change | None:
        """The end of revocations and exceptions whose time has come, EXPIRED_MAX at a time; None when there are none."""
        due: list[tuple[int, int, str]] = []
        while self._expiries and len(due) < EXPIRED_MAX and self._expiries[0][0] * 1_000_000_000 <= now_ns:
            one = heapq.heappop(self._expiries)
            if self.epoch_of(one[2]) == one[1]:
                due.append(one)
        for one in due:  # they leave with `apply`; until then they are due
            heapq.heappush(self._expiries, one)
        if not due:
            return None
        return self._made(dict.fromkeys(key for _, _, key in due), now_ns, OWN, {"expired": len(due)}, limited=False)

    def next_expiry_s(self) -> int:
        """When a revocation or exception ends next, seconds since 1970; 0 for never."""
        while self._expiries and self.epoch_of(self._expiries[0][2]) != self._expiries[0][1]:
            heapq.heappop(self._expiries)
        return self._expiries[0][0] if self._expiries else 0

    def heartbeat(self, counter: int, now_ns: int) -> Entry:
        """The word that everything up to now is what control says is live."""
        value = {"counter": counter, "digest": self.digest().hex(), "live": self.live}
        return Entry(epoch=self.epoch, key=HEARTBEAT, time_ns=now_ns, actor=OWN, value=value)

    def apply(self, change: Change) -> None:
        """Take a change in. It must be the next one."""
        for entry, payload in zip(change.entries, change.payloads, strict=True):
            self.take(entry, payload)

    def _made(
        self, made: Mapping[str, Mapping[str, Any] | None], now_ns: int, actor: str, result: Mapping[str, Any], *, limited: bool
    ) -> Change:
        entries: list[Entry] = []
        payloads: list[bytes] = []
        after = self._bytes
        for number, (key, value) in enumerate(made.items(), self.epoch + 1):
            entry = Entry(epoch=number, key=key, time_ns=now_ns, actor=actor, value=value)
            payload = entry.payload()
            size = HEAD_BYTES + len(payload)
            if size > ENTRY_BYTES_MAX:
                raise OperatorFault(f"entry `{shown(key)}` would have {size} bytes, limit is {ENTRY_BYTES_MAX}")
            held = self._live.get(key)
            after += (size_of(key, payload) if value is not None else 0) - (size_of(key, held[1]) if held else 0)
            entries.append(entry)
            payloads.append(payload)
        if limited and self._bytes_max and after > self._bytes_max and after > self._bytes:
            raise OperatorFault(
                f"all live entries would have {after} bytes, limit is {self._bytes_max} on the embedded broker; "
                "a kafka (kafka.servers) has no such limit"
            )
        return Change(entries=tuple(entries), payloads=tuple(payloads), result=result)

    # -- each request ------------------------------------------------------------------------------------------------

    def _do(self, do: str, request: Mapping[str, Any], made: dict[str, Any], now_ns: int) -> Mapping[str, Any]:
        match do:
            case "revoke":
                return self._revoke(request, made, now_ns)
            case "revoke-many":
                return self._revoke_many(request, made, now_ns)
            case "unrevoke":
                return self._unrevoke(request, made)
            case "exception-add":
                return self._exception_add(request, made, now_ns)
            case "exception-remove":
                return self._exception_remove(request, made)
            case "pause":
                made[PAUSE] = {"reason": requests.reason(request)}
                return {}
            case "resume":
                return self._resume(made)
            case "agent-add":
                return self._agent_add(request, made)
            case "agent-rotate":
                return self._agent_rotate(request, made)
            case "agent-remove":
                return self._agent_remove(request, made)
            case "enforcer-add" | "worker-add":
                return self._peer_add(do.partition("-")[0], request, made)
            case "enforcer-remove" | "worker-remove":
                return self._peer_remove(do.partition("-")[0], request, made)
            case "policy":
                return self._policy(request, made)
            case "policy-rollback":
                return self._policy_rollback(made)
            case "key-rotate":
                return self._key_rotate(request, made)
            case "key-retire":
                return self._key_retire(request, made)
            case _:
                return self._forget_keys(request, made)

    def _revoke(self, request: Mapping[str, Any], made: dict[str, Any], now_ns: int) -> Mapping[str, Any]:
        selector = _selector(request)
        expires = _expires(requests.whole(request, "for_s", requests.LASTS_S_MAX), now_ns)
        key = f"revocation/{selector.text}"
        if requests.flag(request, "only_new") and key in self._live:
            raise Already(f"`{shown(selector.text)}` is revoked already, as epoch {self.epoch_of(key)}")
        made.pop(key, None)
        made[key] = {
            "kind": selector.kind, "name": selector.name, "cascade": selector.cascade, "reason": requests.reason(request),
            "not_before": requests.whole(request, "not_before_s", requests.TIME_S_MAX), "expires": expires,
        }  # fmt: skip
        return {"selector": selector.text, "expires": expires}

    def _revoke_many(self, request: Mapping[str, Any], made: dict[str, Any], now_ns: int) -> Mapping[str, Any]:
        for number, item in enumerate(requests.items(request)):
            try:
                requests.checked({"do": "revoke", **item})
                self._revoke(item, made, now_ns)
            except OperatorFault as fault:
                raise OperatorFault(f"items[{number}]: {fault}") from fault
        return {"revocations": len(made)}

    def _unrevoke(self, request: Mapping[str, Any], made: dict[str, Any]) -> Mapping[str, Any]:
        selector = _selector(request)
        key = f"revocation/{selector.text}"
        if key not in self._live:
            raise OperatorFault(f"`{shown(selector.text)}` is not revoked")
        made[key] = None
        return {"selector": selector.text}

    def _exception_add(self, request: Mapping[str, Any], made: dict[str, Any], now_ns: int) -> Mapping[str, Any]:
        """One for each detector and subject: a new one takes the place of what stands."""
        detector, subject = requests.detector(request), requests.text(request, "subject", requests.SUBJECT_BYTES_MAX)
        name, expires = exception_name(detector, subject), _expires(requests.lasting(request), now_ns)
        made[f"exception/{name}"] = {
            "finding": requests.finding(request, "finding"), "detector": detector, "subject": subject,
            "owner": requests.owner(request), "expires": expires,
            "reason": requests.text(request, "reason", requests.REASON_BYTES_MAX, empty=True),
        }  # fmt: skip
        return {"exception": name, "expires": expires}

    def _exception_remove(self, request: Mapping[str, Any], made: dict[str, Any]) -> Mapping[str, Any]:
        name = requests.finding(request, "name")
        made[self._standing(f"exception/{name}").key] = None
        return {"exception": name}

    def _resume(self, made: dict[str, Any]) -> Mapping[str, Any]:
        if PAUSE not in self._live:
            raise OperatorFault("nothing is paused")
        made[PAUSE] = None
        return {}

    def _agent_add(self, request: Mapping[str, Any], made: dict[str, Any]) -> Mapping[str, Any]:
        name = requests.agent(request)
        if f"agent/{name}" in self._live:
            raise OperatorFault(f"agent `{shown(name)}` is there already; `agent rotate` gives it a new credential")
        value = {
            "owner": requests.owner(request), "secret": requests.secret(request), "subs": requests.subs(request),
            "spiffe": requests.spiffe(request),
        }  # fmt: skip
        for identity in identities_of(value):
            if other := self._identities.get(identity):
                raise OperatorFault(f"agent `{shown(other)}` already has the outside identity `{shown(identity)}`")
        made[f"agent/{name}"] = value
        lifted = f"revocation/agent*:{name}"
        standing = self.get(lifted)
        if standing is not None and standing.value is not None and standing.value["reason"] == REMOVED:
            made[lifted] = None
        return {"agent": name}

    def _agent_rotate(self, request: Mapping[str, Any], made: dict[str, Any]) -> Mapping[str, Any]:
        name = requests.agent(request)
        entry = self._standing(f"agent/{name}")
        made[entry.key] = {**(entry.value or {}), "secret": requests.secret(request)}
        return {"agent": name}

    def _agent_remove(self, request: Mapping[str, Any], made: dict[str, Any]) -> Mapping[str, Any]:
        name = requests.agent(request)
        made[self._standing(f"agent/{name}").key] = None
        made[f"revocation/agent*:{name}"] = {
            "kind": "agent", "name": name, "cascade": True, "reason": REMOVED, "not_before": 0, "expires": 0
        }  # fmt: skip
        return {"agent": name}

    def _peer_add(self, kind: str, request: Mapping[str, Any], made: dict[str, Any]) -> Mapping[str, Any]:
        name = requests.peer(request)
        made[f"{kind}/{name}"] = {"key": requests.public(request, "key")}
        return {kind: name}

    def _peer_remove(self, kind: str, request: Mapping[str, Any], made: dict[str, Any]) -> Mapping[str, Any]:
        name = requests.peer(request)
        made[self._standing(f"{kind}/{name}").key] = None
        return {kind: name}

    def _policy(self, request: Mapping[str, Any], made: dict[str, Any]) -> Mapping[str, Any]:
        facts = {name: request[name] for name in ("digest", "bytes", "packed", "chunks", "policies")}
        made[POLICY] = {**facts, "origin": "files"}
        return {"digest": request["digest"]}

    def _policy_rollback(self, made: dict[str, Any]) -> Mapping[str, Any]:
        before, now = self.previous, self.policy
        if before is None or now is None:
            raise OperatorFault("there is no policy set before the one in force")
        made[POLICY] = {**before.value, "origin": "rollback"}
        return {"digest": before.digest, "from": now.digest}

    def _key_rotate(self, request: Mapping[str, Any], made: dict[str, Any]) -> Mapping[str, Any]:
        public = requests.public(request, "public")
        key_id = requests.key_id(public)
        made[f"key/{key_id}"] = {"public": public}
        return {"key": key_id}

    def _key_retire(self, request: Mapping[str, Any], made: dict[str, Any]) -> Mapping[str, Any]:
        entry = self._standing(f"key/{requests.text(request, 'key_id', 16)}")
        if entry.epoch == max(one.epoch for one in self.entries("key")):
            raise OperatorFault(f"control key `{entry.name}` is the one that signs; rotate first")
        made[entry.key] = None
        return {"key": entry.name}

    def _forget_keys(self, request: Mapping[str, Any], made: dict[str, Any]) -> Mapping[str, Any]:
        """Keys that stand on the topic and that no journal of ours has: they are removed there."""
        for key in request["keys"]:
            if key in self._live:
                raise OperatorFault(f"`{shown(key)}` is live")
            made[key] = None
        return {"keys": len(made)}

    def _standing(self, key: str) -> Entry:
        entry = self.get(key)
        if entry is None:
            kind, _, name = key.partition("/")
            raise OperatorFault(f"there is no {'control key' if kind == 'key' else kind} `{shown(name)}`")
        return entry


def _expires(lasts_s: int, now_ns: int) -> int:
    """Seconds since 1970; 0 is never."""
    return -(-now_ns // 1_000_000_000) + lasts_s if lasts_s else 0


def _selector(request: Mapping[str, Any]) -> Selector:
    kind, name = requests.text(request, "kind", 64), request.get("name")
    if not isinstance(name, str):
        raise OperatorFault("`name` is not a text")
    return make_selector(kind, name, cascade=requests.flag(request, "cascade"))
