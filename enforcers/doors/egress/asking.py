"""A request that is somebody's: what of it is a call, decided and recorded. Nothing here waits, and nothing goes out."""

from typing import TYPE_CHECKING

from enforcers.core.call import Call, path_text, target_of
from enforcers.core.caller import Caller
from enforcers.core.exchange import Exchange
from enforcers.core.http.head import Request
from enforcers.core.http.target import Where
from enforcers.core.query import measure
from enforcers.core.refusal import Refusal, refusal
from enforcers.core.tracing import Trace, new_trace, read_trace

if TYPE_CHECKING:
    from enforcers.doors.egress.client import Client
    from enforcers.doors.egress.door import Door


def ask(
    door: "Door", caller: Caller, request: Request, where: Where, peer: str
) -> tuple[Exchange, Trace, Refusal | None]:
    """Decide and record a call that came over a connection from `peer`; a Refusal where it may not go on."""
    now_ns = door.now_ns()
    trace = read_trace(request.trace, door.mint()) if request.trace else new_trace(door.mint())
    size, bits, mark = measure(where.query, door.query_key) if where.query else (0, 0, 0)
    exchange = Exchange(door.desk, caller)
    # by position, in the order of `Call`: named, it takes twice the time
    call = Call(
        now_ns, door.name, caller.chain, f"http:{request.method}", target_of(where.uid, where.scheme), trace.trace_id,
        trace.parent_span, caller.session, caller.assurance, caller.credential, caller.proof, caller.token, caller.twin,
        caller.key, "", caller.issuer, caller.issued_s, path_text(where.path), size, bits, mark, peer,
    )  # fmt: skip
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
