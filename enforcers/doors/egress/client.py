"""A connection of a client: one request after another, each read strictly, named, decided and recorded before it goes anywhere.

    HEAD     a head is read                                     IDENT   who shows this credential is found out
    CALL     a call is out (`Flight`), its body goes up         SKIP    a refused request's body is read and dropped
    LINGER   nothing more is answered: what still comes is dropped until the client has seen our last bytes

A second request that comes before the answer to the first is never read: the connection ends with that answer. No task stands
for a connection; only a credential that is not known yet, or a connection to be made, has one.
"""

import asyncio
from typing import TYPE_CHECKING

from enforcers.core.caller import Caller, NoIdentity
from enforcers.core.http.fields import BadRequest, Fields
from enforcers.core.http.framing import LENGTH, NONE, Body
from enforcers.core.http.head import Request, find_head
from enforcers.core.refusal import Refusal
from enforcers.doors.egress import tunnel
from enforcers.doors.egress.asking import ask, no_meaning, nobody, over_its_limit
from enforcers.doors.egress.connection import FOREVER, LINGER_BYTES, LINGER_S, SKIP_BYTES, Connection
from enforcers.doors.egress.ends import BUFFER_BYTES
from enforcers.doors.egress.flight import Flight
from enforcers.doors.egress.last import Last
from ext.wires import Wire

if TYPE_CHECKING:
    from enforcers.doors.egress.door import Door

HEAD, IDENT, CALL, SKIP, LINGER, GONE = range(6)


class Client(Connection):
    """One connection."""

    __slots__ = (
        "_data", "_door", "_eof", "_flight", "_full", "_left", "_pieces", "_request", "_seen", "_state", "_task", "agent",
        "body", "last", "pipelined", "trailers",
    )  # fmt: skip

    def __init__(self, door: "Door") -> None:
        super().__init__(door.tunnels.loop)
        self.agent = ""
        """Whose it has shown to be."""
        self.body: Body | None = None
        """Of the request in hand; None when that is read to its end."""
        self.trailers: Fields = []
        self.pipelined = False
        """Whether something came behind a request that is not answered: it is never read."""
        self.last = Last()
        self._door = door
        self._state = HEAD
        self._data = bytearray()
        """Of a head that is not whole yet, or, for CONNECT, what came behind it."""
        self._seen = 0
        self._request: Request
        self._flight: Flight | None = None
        self._task: asyncio.Task[None] | None = None
        self._pieces: list[bytes] = []
        self._left = 0
        self._eof = False
        """Whether it has said that it sends no more."""
        self._full = False
        """Whether more than BUFFER_BYTES wait to be taken by it."""

    # -- the connection ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there, and counted, or closed at once."""
        self.meet(transport)
        if not self._door.admit(self):
            self._state = GONE
            self.transport.abort()
            return
        self.transport.set_write_buffer_limits(BUFFER_BYTES)
        self.wait_s(self._door.idle_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, whoever closed it."""
        self._state = GONE
        self._door.left(self)
        self._drop("the client left before its answer was whole")

    def eof_received(self) -> bool:
        """It sends no more. It may still read: the answer to what it has sent whole is written."""
        self._eof = True
        if self._state in (IDENT, CALL):
            if self.body is None:
                return True
            self._drop("the client ended its connection in the middle of a body")
        self._state = GONE
        return False

    def _drop(self, why: str) -> None:
        """Whatever is in hand is given up."""
        flight, self._flight = self._flight, None
        task, self._task = self._task, None
        if flight is not None:
            flight.client_gone(why)
        if task is not None:
            task.cancel()

    def pause_writing(self) -> None:
        """It takes less than it gets."""
        self._full = True
        if self._flight is not None:
            self._flight.hold_origin()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._full = False
        if self._flight is not None:
            self._flight.release_origin()
        elif self._state == HEAD and self._data:
            self.release()
            self._read()

    def hand_over(self) -> Wire:
        """Let the transport be a tunnel's, which sets a protocol of its own."""
        self._state, self._flight, self.due = GONE, None, FOREVER
        self.release()
        self._door.left(self)
        return self.transport

    # -- what it sends -----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """The next bytes, whatever they belong to."""
        state = self._state
        if state == HEAD:
            if not self._data and not self._full:
                head = self.last.head
                if head and data.startswith(head):
                    self._go(data[len(head) :])
                    return
                size = self._head_size(data)
                if size:
                    self._take(data[:size], data[size:])
                    return
                if self._state == HEAD:
                    self.wait_s(self._door.config.header_ms / 1000)
                    self._data += data
                return
            self._data += data
            self._read()
        elif state in (CALL, IDENT):
            if self.body is not None:
                self._more(data)
            elif self._request.method == "CONNECT":
                self._data += data
                if len(self._data) > BUFFER_BYTES:
                    self.hold()
            else:
                self.pipelined = True
                self.hold()
        elif state == SKIP:
            self._skip(data)
        elif state == LINGER:
            self._left -= len(data)
            if self._left < 0:
                self.abort()

    def _read(self) -> None:
        """A head in several pieces."""
        if self._full:  # it does not take the answers that it has: the next request waits
            self.hold()
            return
        size = self._head_size(self._data)
        if size:
            data, self._data, self._seen = bytes(self._data), bytearray(), 0
            self._take(data[:size], data[size:])
        elif self._state == HEAD:
            self._seen = len(self._data)

    def _head_size(self, data: bytes | bytearray) -> int:
        try:
            return find_head(data, self._door.config.header_bytes, self._seen)
        except BadRequest as fault:
            if fault.status == 431:
                self._door.figures.reached["header_bytes"] += 1
            self._malformed(fault)
            return 0

    def _take(self, head: bytes, rest: bytes) -> None:
        """A whole head, and what came behind it."""
        try:
            self.last.read(head, self._door.connects, self.peer)
        except BadRequest as fault:
            self._malformed(fault)
            return
        self._request = self.last.request
        self._go(rest)

    def _go(self, rest: bytes) -> None:
        """A request that is understood; `rest` came behind its head."""
        door, request = self._door, self._request
        framing = request.body
        pieces: list[bytes] = []
        if request.method == "CONNECT":
            self._data += rest
        elif framing is NONE:
            self.pipelined = bool(rest)
        elif framing.kind == LENGTH and len(rest) == framing.length:
            if rest:
                pieces.append(rest)
        else:
            self.body = Body(framing)
            try:
                pieces = self.body.feed(rest)
            except BadRequest as fault:
                self._malformed(fault)
                return
            self._note_end()
        self._state = CALL
        self.due = FOREVER
        self._pieces = pieces
        now_ns = door.now_ns()
        caller = self.last.caller(door.identify, now_ns * 1e-9)
        if caller is None:
            self._state, self._request = IDENT, self.last.request
            self._task = self._loop.create_task(self._identify())
        else:
            self._call(caller, now_ns)

    def _note_end(self) -> None:
        body = self.body
        if body is not None and body.done:
            self.body, self.trailers = None, body.trailers
            if body.extra:
                self.pipelined = True
                self.hold()

    def _more(self, data: bytes) -> None:
        """More of a body."""
        body = self.body
        assert body is not None
        try:
            pieces = body.feed(data)
        except BadRequest as fault:
            flight, self._flight = self._flight, None
            if flight is not None:
                flight.bad_body(fault)
                self.abort() if flight.head_sent else self._malformed(fault)
            else:
                self._malformed(fault)
            return
        self._note_end()
        if self._flight is not None:
            self._flight.up(pieces)
            return
        self._pieces += pieces
        if sum(map(len, self._pieces)) > BUFFER_BYTES:
            self.hold()

    def _skip(self, data: bytes) -> None:
        """The rest of a body that nobody gets."""
        body = self.body
        assert body is not None
        self._left -= len(data)
        try:
            body.feed(data)
        except BadRequest:
            self._linger()
            return
        self._note_end()
        if self.pipelined or self._left < 0:
            self._linger()
        elif self.body is None:
            self._again()

    # -- who, and whether --------------------------------------------------------------------------------------------

    async def _identify(self) -> None:
        """A credential that is not known by its looks."""
        request = self._request
        try:
            caller = await self._door.identify.check(request.headers)
        except NoIdentity as fault:
            self._task = None
            self.refuse(nobody(self._door, fault))
            return
        self._task = None
        self._state = CALL
        self._call(caller, self._door.now_ns())

    def _call(self, caller: Caller, now_ns: int) -> None:
        """A request that is somebody's: decide, record, and let it out."""
        door, request, where = self._door, self._request, self.last.where
        if caller.agent != self.agent or request.upgrade:
            refused = over_its_limit(door, self, caller, request)
            if refused is not None:
                self.refuse(refused)
                return
        exchange, trace, refused = ask(door, self.last, caller, self.peer, now_ns)
        if refused is not None:
            self.refuse(refused)
            return
        if request.method == "CONNECT":
            early, self._data = bytes(self._data), bytearray()
            self.release()  # from here on the tunnel says whether it is read
            refused = tunnel.start(door, exchange, where, self.transport, early, caller)
            if refused is None:
                self.hand_over()
            else:
                door.figures.refused[refused.reason] += 1
                self.refuse(refused, close=bool(early))
            return
        self._flight = flight = Flight(door, self, exchange, request, where, trace)
        pieces, self._pieces = self._pieces, []
        if self._held and not self.pipelined:
            self.release()
        flight.begin(pieces)

    # -- what it is told ---------------------------------------------------------------------------------------------

    @property
    def must_close(self) -> bool:
        """Whether the connection ends with the answer in hand."""
        return self._request.close or self.pipelined or self._eof or self._door.stopping

    def answered(self, close: bool) -> None:
        """The answer in hand is whole."""
        self._flight = None
        if close or self.pipelined or self._eof:
            self._finish()
        else:
            self._again()

    def refuse(self, refused: Refusal, *, close: bool = False) -> None:
        """Answer for ourselves. The connection stays where it is known what follows."""
        self._flight = None
        if self._state == GONE:
            return
        request, framing = self._request, self._request.body
        if self.body is not None:
            close = close or request.expect or (framing.kind == LENGTH and framing.length > SKIP_BYTES)
        close = close or self.must_close or bool(self._data)  # what came behind a CONNECT is no request
        self.transport.write(refused.encode(close=close, body=request.method != "HEAD"))
        if close:
            self._finish()
        elif self.body is not None:
            self._state, self._left = SKIP, SKIP_BYTES
            self.wait_s(self._door.body_s)
            self.release()
        else:
            self._again()

    def _malformed(self, fault: BadRequest) -> None:
        """What has no one meaning ends the connection: nobody knows where the next request would begin."""
        self.transport.write(no_meaning(self._door, fault).encode(close=True))
        self._linger()

    def _again(self) -> None:
        """Ready for the next request."""
        self._state = HEAD
        self.wait_s(self._door.idle_s)
        if self._held:
            self.release()

    def _finish(self) -> None:
        """End the connection behind what was written."""
        if self._eof or (self.body is None and not self.pipelined and not self._held):
            self._state = GONE
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """End our side, and read what still comes, for a while."""
        self._state, self._left, self.body = LINGER, LINGER_BYTES, None
        self._data = bytearray()
        self.wait_s(LINGER_S)
        self.end_writing()

    def abort(self) -> None:
        """End the connection so that the client sees it break off."""
        self._state, self._flight = GONE, None
        self.break_off()

    def leave_if_idle(self) -> None:
        """The door stops: a connection without a request in hand is closed."""
        if self._state == HEAD:
            self._state = GONE
            self.transport.close()

    def late(self) -> None:
        """Its time is up."""
        figures, config = self._door.figures, self._door.config
        self.due = FOREVER
        if self._flight is not None:
            self._flight.late()
        elif self._state == HEAD and self._data and not self._full:
            figures.reached["header_ms"] += 1
            self._malformed(BadRequest("slow-head", f"the head was not whole within {config.header_ms} ms", 408))
        elif self._state == HEAD:
            figures.reached["idle_ms"] += 1
            self._state = GONE
            self.transport.close() if not self._full else self.abort()
        else:
            self.abort()

