"""A request that is somebody's: what of it is a call, decided and recorded. Nothing here waits, and nothing goes out."""

from typing import TYPE_CHECKING, NamedTuple

from enforcers.core.call import Call, Kept, path_text, target_of
from enforcers.core.caller import Caller, NoIdentity
from enforcers.core.exchange import Exchange
from enforcers.core.http.fields import BadRequest
from enforcers.core.http.head import Request
from enforcers.core.http.target import Where
from enforcers.core.query import measure
from enforcers.core.refusal import Refusal, malformed, refusal, unknown
from enforcers.core.tracing import Trace, new_trace, read_trace
from enforcers.doors.egress.last import Last

if TYPE_CHECKING:
    from enforcers.doors.egress.client import Client
    from enforcers.doors.egress.door import Door


class Asked(NamedTuple):
    """What a request asks for, however it is said again: all of a `Call` but its time and its trace."""

    caller: Caller
    method: str
    where: Where
    before: tuple[object, ...]
    """The fields of a `Call` between its time and its trace, in their order."""
    after: tuple[object, ...]
    """Those behind it."""


def _asked(door: "Door", caller: Caller, method: str, where: Where, peer: str) -> Asked:
    size, bits, mark = measure(where.query, door.query_key) if where.query else (0, 0, 0)
    before = door.name, caller.chain, f"http:{method}", target_of(where.uid, where.scheme)
    after = (
        caller.session, caller.assurance, caller.credential, caller.proof, caller.token, caller.twin, caller.key, "",
        caller.issuer, caller.issued_s, path_text(where.path), size, bits, mark, peer, 0, Kept(),
    )  # fmt: skip
    return Asked(caller, method, where, before, after)


def ask(
    door: "Door", last: Last, caller: Caller, peer: str, now_ns: int
) -> tuple[Exchange, Trace, Refusal | None]:
    """Decide and record the call of the request that came last from `peer`; a Refusal where it may not go on."""
    request, where, asked = last.request, last.where, last.asked
    if asked is None or asked.where is not where or asked.caller is not caller or asked.method != request.method:
        asked = last.asked = _asked(door, caller, request.method, where, peer)
        if request.method == "CONNECT":
            last.keep(door.connects, peer)
    trace = read_trace(request.trace, door.mint()) if request.trace else new_trace(door.mint())
    exchange = Exchange(door.desk, caller)
    # one tuple of others, which a client that asks the same again need not have made again
    call = tuple.__new__(Call, (now_ns, *asked.before, trace.trace_id, trace.parent_span, *asked.after))
    refused = exchange.begin(call, now_ns)
    figures = door.figures
    if refused is None:
        figures.allowed += 1
        return exchange, trace, None
    figures.refused[refused.reason] += 1
    if refused.reason == "overloaded":
        figures.reached["spool"] += 1
    if not exchange.seq:  # no record of its own: it is counted, and that is recorded when there is room
        door.flood.add(refused.reason, "spool", agent=caller.agent, status=refused.status)
    return exchange, trace, refused


def over_its_limit(door: "Door", client: "Client", caller: Caller, request: Request) -> Refusal | None:
    """Whether the agent has as many connections, or tunnels, as it may have. That is counted, and has no record of its own."""
    if caller.agent != client.agent and not door.belongs(client, caller.agent):
        code, limit = "connections", door.config.connections_per_agent
    elif request.upgrade and door.tunnels.full(caller.agent):
        code, limit = "tunnels", door.config.tunnels_per_agent
    else:
        return None
    door.flood.add("overloaded", code, agent=caller.agent, status=503)
    door.figures.refused["overloaded"] += 1
    return refusal("overloaded", detail=f"the agent has {limit} {code}, which is its limit", agent=caller.agent)


def nobody(door: "Door", fault: NoIdentity) -> Refusal:
    """A request of which nobody is known: it is counted, and has no record of its own."""
    door.flood.add("identity", fault.code, fault.claimed, status=fault.status)
    door.figures.unnamed[str(fault.status)] += 1
    return unknown(fault.status, str(fault), fault.claimed)


def no_meaning(door: "Door", fault: BadRequest) -> Refusal:
    """The same for one that has no one meaning."""
    door.flood.add("malformed", fault.code, status=fault.status)
    door.figures.unnamed[str(fault.status)] += 1
    return malformed(fault.status, str(fault))
