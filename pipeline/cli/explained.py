"""What a call's record means, in words: why it was decided so, and what would have it allowed. Nothing here asks anybody."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.cli.asking import known, shown_span, shown_time
from pipeline.cli.common import printable, shown_size
from pipeline.cli.policytext import PolicyText
from schemas.limits import CHAIN_LINKS_MAX
from schemas.vocabulary import action_uid

REASONS: Final[Mapping[str, str]] = {
    "permit": "a policy permits it for every agent of the chain, and none forbids it",
    "forbid": "a policy forbids it",
    "no-permit": "no policy permits it for every agent of the chain",
    "chain": f"the chain has more than {CHAIN_LINKS_MAX} principals",
    "identity": "no agent acts in its chain, or that agent was no longer known",
    "overloaded": "the door had no room to record it",
    "revoked": "something that is true of the call was revoked",
    "paused": "everything was paused",
    "stale": "the door may have missed a revocation: it had not heard control",
    "address": "its name leads to an address that may not be dialled",
    "malformed": "the request has no one meaning",
}
"""The reasons of a record."""

PROOFS: Final[Mapping[str, str]] = {
    "secret": "a bearer secret: whoever has read it can be this agent",
    "jws": "a token that an issuer has signed",
    "": "nothing proved the agent",
}

OUTCOMES: Final[Mapping[str, str]] = {
    "": "it is open: nothing has said how it ended",
    "ok": "it was done",
    "error": "it went out and failed",
    "refused": "it was not done, or was cut off",
    "lost": "its door died while it was open: it may have been done",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What the policies of the call say of one agent of its chain."""

    uid: str
    verdict: str
    reason: str
    policies: tuple[str, ...]


def decided_after(records: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The record that took a decision back, where one did: the last that has a verdict of its own and is no decision."""
    found = None
    for record in records:
        if record["kind"] != "decision" and record["verdict"]:
            found = record
    return found


def asked_later(record: Mapping[str, Any] | None) -> str:
    """The second question that a call was refused for, such as `tcp:CONNECT`; empty where it was refused for the first."""
    if record is None or record["reason"] not in ("no-permit", "forbid"):
        return ""
    action, colon, _ = str(record["error"]).partition(": ")
    return action if colon and ":" in action else ""


def chain_text(chain: Sequence[str], assurance: Sequence[str]) -> str:
    """`User::"alice" -(signed)-> Agent::"planner"`, root first."""
    parts = list(chain[:1])
    for number, uid in enumerate(chain[1:]):
        how = assurance[number] if number < len(assurance) and assurance[number] else "not assured"
        parts.append(f" -({how})-> {uid}")
    return "".join(parts)


def advice(call: Mapping[str, Any], action: str, links: Sequence[Link], revocations: Sequence[Mapping[str, Any]],
           pause: Mapping[str, Any] | None) -> list[str]:  # fmt: skip
    """What to do to get such a call allowed, and who; empty where it was allowed."""
    if call["verdict"] == "allow":
        return []
    resource = call["resource"]
    match call["reason"]:
        case "no-permit":
            lacking = [link.uid for link in links if link.reason == "no-permit"]
            lacking = lacking or [uid for uid in call["chain"] if uid.startswith('Agent::"')]
            on = f"action == {action_uid(action)}, resource == {resource}"
            wanted = [f"  permit (principal == {uid}, {on});" for uid in lacking]
            return ["whoever answers for the policies may add to `policies/`:", *wanted]
        case "forbid":
            by = [name for link in links for name in link.policies if link.reason == "forbid"] or list(call["policies"])
            names = ", ".join(dict.fromkeys(by)) or "the policy that forbids it"
            return [f"a forbid goes before every permit: whoever answers for the policies would have to change {names}"]
        case "revoked":
            return _lift(revocations)
        case "paused":
            why = f" (paused by {pause['by']}: {pause['reason']})" if pause else ""
            return [f"`wardline resume`, once the reason has gone{why}"]
        case "stale" | "overloaded":
            return ["try again; `wardline status` says whether the door's host hears control and what is full"]
        case "address":
            at = f" ({call['address']})" if call["address"] else ""
            return [f"name the address{at} in `[egress] allow_addresses` of wardline.toml, as CIDR or CIDR:PORT, "
                    "and start the enforcer again; listeners of Wardline's own are refused always"]  # fmt: skip
        case "chain":
            return [f"a shorter delegation: {CHAIN_LINKS_MAX} principals at most, the root included"]
        case "identity":
            return ["the chain must end with an agent that control knows: `wardline agent list`"]
        case "malformed":
            return ["whoever wrote the client has to correct the request: the error above says what was wrong with it"]
    return []


def _lift(revocations: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for one in revocations:
        star = " --cascade" if "*" in str(one["selector"]).partition(":")[0] else ""
        if one["state"] != "live":
            lines.append(f"{one['selector']} is {one['state']} since {shown_time(one['until'])}: try again")
        elif one["reason"] == "agent removed":
            lines.append(f"the agent was removed: `wardline agent add {one['name']} ...` makes it anew")
        else:
            lines.append(f"`wardline unrevoke {one['kind']} {one['name']}{star}`, once the reason has gone")
    return lines or ["`wardline revocations` lists what is revoked now"]


# -- for people ----------------------------------------------------------------------------------------------------------


def render(found: Mapping[str, Any]) -> str:
    """The whole explanation as text. Nothing that was recorded writes to the terminal."""
    call = found["call"]
    path = f", path {call['path']}" if call["path"] else ""
    ended = f"{OUTCOMES.get(call['outcome'], call['outcome'])}" + (f", status {call['status']}" if call["status"] else "")
    moved = f"{shown_size(call['bytes_out'])} out, {shown_size(call['bytes_in'])} in"
    pairs: list[tuple[str, str]] = [
        ("call", call["call_id"]),
        ("when", _when(call)),
        ("door", f"{call['door']} of {call['enforcer']}"),
        ("who", _or_none(call["agent"])),
        ("for whom", chain_text(call["chain"], call["assurance"]) or "nobody"),
        ("session", _or_none(call["session"])),
        ("credential", _credential(call)),
        ("asked", f"{call['action']} on {call['resource']}{path}{_query(call)}"),
        *([("", f"then {found['asked_later']} on the same")] if found["asked_later"] else []),
        ("verdict", _verdict(call)),
        ("why", _why(call)),
        *([("", call["error"])] if call["error"] else []),
        *(("", _link(link)) for link in found["links"]),
        *_policies(found),
        ("epoch", f"{found['epoch']} of the control log"),
        *_stopped(found),
        ("ended", ended),
        ("dialled", _or_none(call["address"])),
        ("bytes", moved if call["outcome"] else f"{moved} so far"),
        ("took", shown_span(call["duration_ms"])),
        ("trace", _trace(found)),
        ("frame", _frame(found["frame"])),
        *(("" if number else "to allow it", line) for number, line in enumerate(found["advice"])),
    ]
    return "\n".join(f"{name:<12}{printable(text)}".rstrip() for name, text in pairs)


def _or_none(text: str) -> str:
    return text or "-"


def _when(call: Mapping[str, Any]) -> str:
    ended = f", ended {shown_time(call['ended'])}" if call["ended"] else ""
    return f"{shown_time(call['time'])} UTC, recorded {shown_time(call['recorded'])}{ended}"


def _credential(call: Mapping[str, Any]) -> str:
    what = PROOFS.get(call["proof"], call["proof"])
    return f"{what}; hash {call['credential']}" if call["credential"] else what


def _query(call: Mapping[str, Any]) -> str:
    return f", query of {call['query_bytes']} bytes with {call['query_bits']} bits" if call["query_bytes"] else ""


def _verdict(call: Mapping[str, Any]) -> str:
    mode = "" if call["mode"] == "enforce" else f" (mode {call['mode']}: the verdict was not enforced)"
    return f"{'ALLOWED' if call['verdict'] == 'allow' else 'DENIED'}{mode}"


def _why(call: Mapping[str, Any]) -> str:
    words = REASONS.get(call["reason"])
    return f"{call['reason']}: {words}" if words else str(call["reason"])


def _link(link: Mapping[str, Any]) -> str:
    by = f" by {', '.join(link['policies'])}" if link["policies"] else ""
    return f"{link['uid']}: {link['verdict']}, {link['reason']}{by}"


def _policies(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = [("policies", f"digest {found['call']['policy_digest'] or '-'}")]
    if found["policies_note"]:
        pairs.append(("", found["policies_note"]))
    for policy in found["policies"]:
        where = f" at {policy['place']}" if policy["place"] else ""
        about = f" ({policy['effect']}{where})" if policy["effect"] else ": its text is not here"
        pairs.append(("", f"{policy['id']}{about}"))
        pairs += [("", f"  {line}") for line in policy["text"].expandtabs(4).splitlines() if line.strip()]
    return pairs


def _stopped(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for one in found["revocations"]:
        state = "" if one["state"] == "live" else f", {one['state']} since {shown_time(one['until'])}"
        sure = "" if one["certain"] else " (perhaps: the record does not say this of a call)"
        who = f"{one['selector']} by {one['by']} at {shown_time(one['since'])}, epoch {one['epoch']}{state}"
        pairs.append(("revoked", f"{who}: {one['reason']}{sure}"))
    if found["pause"]:
        one = found["pause"]
        pairs.append(("paused", f"by {one['by']} at {shown_time(one['since'])}, epoch {one['epoch']}: {one['reason']}"))
    return pairs


def _trace(found: Mapping[str, Any]) -> str:
    call = found["call"]
    parent = known(call["parent_span"])
    went = f", upstream {found['span']}" if found["span"] else ""
    return f"{call['trace_id']}, parent {parent or '-'}{went}"


def _frame(frame: Mapping[str, Any] | None) -> str:
    if frame is None:
        return "not in the store"
    return (f"{frame['frame_no']} of lane {frame['enforcer']}/{frame['enforcer_boot']}/{frame['partition']}, "
            f"digest {frame['digest']}; {frame['signature']}")  # fmt: skip


def policy_json(name: str, text: PolicyText | None) -> dict[str, Any]:
    """A policy of an explanation; without effect and text where nobody here has it."""
    if text is None:
        return {"id": name, "effect": "", "place": "", "text": "", "annotations": {}}
    return {"id": name, "effect": text.effect, "place": text.place, "text": text.text, "annotations": dict(text.annotations)}
