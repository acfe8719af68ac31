"""A call that was decided, recorded and let out: it waits for a connection, goes up, and its answer comes back.

    begin         an idle connection of this agent's, or a wait in the pool (it is asked with every change of the board)
    connected     may_act, then the first byte, and nothing between the two
    up            the body, piece by piece; the client is paused while the origin does not take it
    answered      100 and its kin, the head, the body; the origin is paused while the client does not take it
    over          exactly one effect, whichever way it ends; then the connection carries the next call, or is closed

It is sent again, on a new connection, in one case: the connection had been kept, was closed before a byte of the answer came,
and the request may be repeated (RFC 9110, section 9.2.2) and had no body.
"""

from typing import TYPE_CHECKING, Final

from enforcers.core.exchange import Exchange
from enforcers.core.http.fields import BadAnswer, BadRequest
from enforcers.core.http.forward import answer_framing, answer_head, traced_head
from enforcers.core.http.framing import CHUNKED, LENGTH, UNTIL_CLOSE, Body, chunks, last_chunk
from enforcers.core.http.head import Answer, Request, find_head, parse_answer
from enforcers.core.http.target import Where
from enforcers.core.tracing import Trace, traceparent
from enforcers.doors.egress.ends import BUFFER_BYTES
from enforcers.doors.egress.origin import Origin, Said
from enforcers.doors.egress.tunnel import relay
from schemas.limits import MIB
from schemas.records import Outcome

if TYPE_CHECKING:
    from enforcers.doors.egress.client import Client
    from enforcers.doors.egress.door import Door

REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

SLACK_S: Final = 0.5
"""A call waits so much longer than a lookup and a dial may take together: the one that is slow should be named."""

PROGRESS_NS: Final = 10_000_000_000
PROGRESS_BYTES: Final = MIB
"""A call in which something moves is recorded again after so long, or so much."""


class Flight:
    """One call. What its client is told goes through `Client`, which knows what else may come over that connection."""

    __slots__ = (
        "_answer", "_body", "_chunked", "_client", "_close", "_door", "_held", "_held_bytes", "_origin", "_partial",
        "_recorded", "_recorded_ns", "_request", "_sent", "_trace", "bytes_in", "bytes_out", "exchange", "head_sent", "key",
        "where",
    )  # fmt: skip

    def __init__(
        self, door: "Door", client: "Client", exchange: Exchange, request: Request, where: Where, trace: Trace
    ) -> None:
        self.exchange = exchange
        self.where = where
        self.key = (exchange.call.chain.agent, where.host, where.port)
        self.bytes_out = self.bytes_in = 0
        """What went up and came down, heads and framing included."""
        self._door = door
        self._client = client
        self._request = request
        self._trace = trace
        self._origin: Origin | None = None
        self._sent = False
        """Whether its head went up."""
        self._held: list[bytes] = []
        self._held_bytes = 0
        """Of the body: what came before there was a connection."""
        self._answer: Answer | None = None
        self.head_sent = False
        """Whether the client has the head of the answer."""
        self._body: Body | None = None
        self._chunked = self._close = False
        self._partial = b""
        self._recorded = self._recorded_ns = 0

    @property
    def waits(self) -> bool:
        """Whether nothing of it has gone up."""
        return not self._sent

    # -- going up ----------------------------------------------------------------------------------------------------

    def begin(self, pieces: list[bytes]) -> None:
        """Find a connection; `pieces` of the body are there already."""
        self._door.open.add(self)
        origin = self._door.pool.take(self.key)
        if origin is not None:
            self._held = pieces
            if not self.connected(origin, at_once=True):
                self._door.pool.give(origin)
            return
        self.up(pieces)
        self._wait()

    def _wait(self) -> None:
        door = self._door
        config = door.config
        self._client.wait_s((config.dns_ms + config.dial_ms) / 1000 + SLACK_S)
        if not door.pool.wait(self):
            self.refused("overloaded", "too many calls wait for a connection to this origin")

    def connected(self, origin: Origin, *, at_once: bool = False) -> bool:
        """There is a connection for it; whether it has taken it: the board may not have it any more.

        `at_once`: nothing else has happened at this door since it was decided.
        """
        door, exchange, request, client = self._door, self.exchange, self._request, self._client
        refusal = exchange.may_act(door.now_ns(), at_once=at_once)
        if refusal is not None:
            door.figures.refused[refusal.reason] += 1
            self._over()
            client.refuse(refusal)
            return False
        self._origin, origin.flight = origin, self
        exchange.address = origin.address
        trace = self._trace
        parent = traceparent(trace.trace_id, exchange.span, trace.flags)
        head = traced_head(request, self.where, parent, keep_tracestate=trace.keeps_state)
        pieces, self._held = self._held, []
        self._sent = True  # from here on it may have been seen: a crash leaves it open, and it is recorded as lost
        data = head + (pieces[0] if len(pieces) == 1 and request.body is not CHUNKED else self._framed(pieces))
        self.bytes_out += len(data)
        origin.transport.write(data)
        client.wait_s(door.answer_s if client.body is None else door.body_s)
        if self._held_bytes:
            self._held_bytes = 0
            client.release()
        return True

    def _framed(self, pieces: list[bytes]) -> bytes:
        if self._request.body is not CHUNKED:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return chunks(pieces, self._client.trailers if self._client.body is None else None)

    def up(self, pieces: list[bytes]) -> None:
        """More of the body, or its end: `Client.body` says which."""
        origin, client = self._origin, self._client
        if origin is None:
            self._held += pieces
            self._held_bytes += sum(map(len, pieces))
            if self._held_bytes > BUFFER_BYTES:
                client.hold()
            return
        if not self.head_sent:
            client.wait_s(self._door.answer_s if client.body is None else self._door.body_s)
        data = self._framed(pieces)
        if data:
            self.bytes_out += len(data)
            origin.transport.write(data)

    def hold_client(self) -> None:
        """The origin is slow."""
        self._client.hold()

    def release_client(self) -> None:
        """It has caught up."""
        self._client.release()

    def hold_origin(self) -> None:
        """The client is slow."""
        if self._origin is not None:
            self._origin.hold()

    def release_origin(self) -> None:
        """It has caught up."""
        if self._origin is not None:
            self._origin.release()

    # -- the answer --------------------------------------------------------------------------------------------------

    def answered(self, data: bytes) -> None:
        """Bytes from the origin."""
        self.bytes_in += len(data)
        try:
            if self._answer is None:
                self._read_head(self._partial + data if self._partial else data, len(self._partial))
            else:
                self._read_body(data)
        except BadAnswer as fault:
            self._fail(502, f"{fault.code}: {fault}", fault.code)

    def _read_head(self, data: bytes, seen: int) -> None:
        """`seen` bytes of it have no end of a head, as an earlier look found."""
        limit, request, client, origin = self._door.config.header_bytes, self._request, self._client, self._origin
        assert origin is not None
        last = origin.last
        if last is not None and not seen and data.startswith(last.head) and last.asked == (request.method, request.minor):
            self._take(last, data[len(last.head) :])
            return
        while True:
            size = find_head(data, limit, seen, BadAnswer)
            if not size:
                self._partial = data
                return
            head = data[:size]
            answer = parse_answer(head, request.method, request.upgrade)
            data, seen = data[size:], 0
            if answer.status >= 200 or answer.upgrade:
                break
            if request.minor:
                client.write(answer_head(answer))
            if not data:
                self._partial = b""
                return
        self._partial = b""
        if answer.upgrade:
            self._answer = answer
            self._switch(answer, data)
            return
        framing = answer_framing(answer, request.minor)
        origin.last = Said(head, (request.method, request.minor), answer, framing, answer_head(answer, request.minor))
        self._take(origin.last, data)

    def _take(self, said: Said, data: bytes) -> None:
        """The head of the answer, and what came behind it."""
        client = self._client
        answer, framing = said.answer, said.framing
        self._answer = answer
        # an answer before the body's end: the origin wants no more of it, and the client is told that nothing follows
        self._close = client.must_close or client.body is not None or framing is UNTIL_CLOSE
        head = answer_head(answer, self._request.minor, close=True) if self._close else said.onward
        self.head_sent = True
        body = answer.body
        if body.kind == LENGTH and len(data) == body.length:
            self._end(head + data if data else head, reusable=not answer.close)
            return
        self._chunked = framing is CHUNKED
        self._body = Body(body, BadAnswer)
        self._read_body(data, head)

    def _read_body(self, data: bytes, head: bytes = b"") -> None:
        body, answer = self._body, self._answer
        assert body is not None
        assert answer is not None
        try:
            pieces = body.feed(data)
        except BadAnswer:
            if head:
                self._client.write(head)  # whatever was sound goes on; that it is cut short is seen
            raise
        out = head + (chunks(pieces, body.trailers if body.done else None) if self._chunked else b"".join(pieces))
        if body.done:
            self._end(out, reusable=not answer.close and not body.extra)
            return
        self._client.wait_s(self._door.body_s)
        if out:
            self._client.write(out)

    def _end(self, out: bytes, *, reusable: bool) -> None:
        """The answer is whole: `out` is the last of it."""
        door, client, origin, answer = self._door, self._client, self._origin, self._answer
        assert origin is not None
        assert answer is not None
        self.exchange.end(Outcome.OK, answer.status, self.bytes_out, self.bytes_in, door.now_ns())
        door.open.discard(self)
        self._origin = origin.flight = None
        client.write(out)
        sent_whole = client.body is None
        client.answered(self._close)
        if reusable and sent_whole and origin.rest():
            door.pool.give(origin)
        else:
            origin.close()

    def _switch(self, answer: Answer, data: bytes) -> None:
        """Both ends go over to another protocol: what follows is a tunnel."""
        client, origin, caller = self._client, self._origin, self.exchange.caller
        assert origin is not None
        assert caller is not None
        if client.must_close:  # it has sent something before it could know that the origin agrees
            self._fail(502, "the client spoke before the origin had gone over", "switch")
            return
        head = answer_head(answer, self._request.minor)
        self._door.open.discard(self)
        self._origin = None
        transport = origin.hand_over()
        relay(
            self._door, self.exchange, caller, client.hand_over(), transport, 101, head + data, b"",
            (self.bytes_out, self.bytes_in),
        )  # fmt: skip

    # -- how it ends otherwise ---------------------------------------------------------------------------------------

    def origin_ended(self, exc: Exception | None) -> None:
        """The origin's connection has ended."""
        origin, body, request = self._origin, self._body, self._request
        assert origin is not None
        if body is not None and body.open_ended and exc is None:
            self._end(last_chunk() if self._chunked else b"", reusable=False)
            return
        if not self.bytes_in and origin.used and request.method in REPEATABLE and not request.body.length and (
            request.body is not CHUNKED
        ):  # fmt: skip
            self._door.figures.retried += 1
            self._origin = origin.flight = None
            self._sent, self.bytes_out = False, 0
            self._wait()
            return
        said = (getattr(exc, "strerror", None) or str(exc or "")).lower()
        where = "in the middle of its answer" if self.bytes_in else "before its answer"
        self._fail(502, f"the origin closed the connection {where}{f': {said}' if said else ''}", "closed")

    def refused(self, reason: str, why: str) -> None:
        """Nothing of it has gone up, and nothing will: no address of its host may be dialled, or there is no room."""
        self._door.figures.refused[reason] += 1
        refusal = self.exchange.refuse(reason, why, self._door.now_ns())
        self._over()
        self._client.refuse(refusal)

    def unreachable(self, code: str, why: str, limit: str = "") -> None:
        """Its host cannot be reached now; `limit` names the limit of time that was reached on the way there."""
        if limit:
            self._door.figures.reached[limit] += 1
        self._fail(504 if code == "timeout" else 502, f"{code}: {why}", code)

    def _fail(self, status: int, error: str, how: str) -> None:
        """It was out, or would have been, and there is no whole answer. A client that has a part of it sees it break off."""
        door, client = self._door, self._client
        door.figures.failed[how] += 1
        said = self._answer.status if self._answer is not None else status
        self.exchange.end(Outcome.ERROR, said, self.bytes_out, self.bytes_in, door.now_ns(), error)
        self._over()
        if self.head_sent:
            client.abort()
        else:
            client.refuse(self.exchange.failed(status, error))

    def late(self) -> None:
        """Its time is up: what it waits for says which limit that was."""
        door, config = self._door, self._door.config
        if not self._sent:
            door.pool.leave(self)
            self.refused("overloaded", f"no connection to this origin was free within {config.dns_ms + config.dial_ms} ms")
        elif self.head_sent or self._client.body is not None:
            door.figures.reached["body_ms"] += 1
            self._fail(504 if self._client.body is None else 408, f"the body stood still for {config.body_ms} ms", "body_ms")
        else:
            door.figures.reached["answer_ms"] += 1
            self._fail(504, f"the origin did not answer within {config.answer_ms} ms", "answer_ms")

    def client_gone(self, why: str) -> None:
        """Its client has left; nobody else's call is touched."""
        self._door.figures.failed["client"] += 1
        if not self._sent:
            self._door.pool.leave(self)
        status = self._answer.status if self._answer is not None else 0
        self.exchange.end(Outcome.ERROR, status, self.bytes_out, self.bytes_in, self._door.now_ns(), why)
        self._over()

    def bad_body(self, fault: BadRequest) -> None:
        """Its body breaks the rules of its framing; what went up of it is not complete, and is seen to be cut short."""
        door = self._door
        door.figures.failed["malformed"] += 1
        if not self._sent:
            door.pool.leave(self)
        self.exchange.end(
            Outcome.ERROR, fault.status, self.bytes_out, self.bytes_in, door.now_ns(), f"malformed: {fault.code}"
        )
        self._over()

    def cut(self, reason: str) -> None:
        """The board will not have it any more."""
        door, client = self._door, self._client
        if not self._sent:
            door.pool.leave(self)
            refusal = self.exchange.withdraw(reason, door.now_ns())
        else:
            refusal = self.exchange.cut(reason, self.bytes_out, self.bytes_in, door.now_ns())
        self._over()
        if self.head_sent:
            client.abort()
        else:
            client.refuse(refusal, close=True)

    def stop(self) -> None:
        """The door stops and waits no longer for it."""
        if not self._sent:
            self._door.pool.leave(self)
        self._fail(503, "the door stopped", "stopped")

    def _over(self) -> None:
        """Its effect is recorded, or waits for room; a connection in the middle of a call can carry no other."""
        self._door.open.discard(self)
        origin, self._origin = self._origin, None
        if origin is not None:
            origin.close()

    # -- while it lasts ----------------------------------------------------------------------------------------------

    def walk(self, now_ns: int) -> None:
        """Now and then: record how far it is, where that is due."""
        moved = self.bytes_out + self.bytes_in
        new = moved - self._recorded
        since = self._recorded_ns or self.exchange.call.time_ns
        if self._sent and (new >= PROGRESS_BYTES or (new and now_ns - since >= PROGRESS_NS)):
            self._recorded, self._recorded_ns = moved, now_ns
            self.exchange.progress(self.bytes_out, self.bytes_in, now_ns)


