"""A tunnel: what CONNECT asks for, and what an upgraded connection becomes.

    port 443, a name       200 -> the ClientHello is read -> it names this host in clear: dial; else: ask for tcp:CONNECT
    another port, literal  ask for tcp:CONNECT at once -> dial -> 200
    dialled                may_act -> what was read goes up -> both ways, until both have ended
    101                    both ways, from `relay` on

`http:CONNECT` on the host was decided and recorded before it comes here. What is inside TLS is not seen: a tunnel whose hello
names the host may speak anything behind it, and the record says no more than whom it reached, when, and how many bytes.

A slow reader stops its sender: at most one read and one write buffer wait for it. Every way that a tunnel ends leads to exactly
one effect, which says in `error` what ended it.
"""

import logging
from collections.abc import Callable
from typing import Final, Protocol

from enforcers.core.addresses import Address
from enforcers.core.clienthello import Hello, differs, look
from enforcers.core.exchange import Exchange
from enforcers.core.refusal import Refusal
from enforcers.doors.egress.dial import Dial, Refused
from enforcers.doors.egress.ends import BUFFER_BYTES, Side, Waiting, close, drop, reset, unsent
from enforcers.doors.egress.resolve import Unreachable
from enforcers.doors.egress.tunnels import Holds
from ext.wires import Wire
from schemas.limits import MIB
from schemas.records import Outcome

log = logging.getLogger(__name__)

TCP: Final = "tcp:CONNECT"
"""The question about a tunnel that is not TLS with the host's name on port 443."""

TLS_PORT: Final = 443

ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"

DENIED: Final = bytes.fromhex("15030300020231")
FAILED: Final = bytes.fromhex("15030300020250")
"""What a TLS client is told whose hello was read, before its tunnel is closed: a fatal alert, `access_denied` where it is
refused, `internal_error` where the origin cannot be reached (RFC 8446, section 6.2)."""

PROGRESS_S: Final = 10.0
PROGRESS_BYTES: Final = MIB
"""A tunnel in which something moved is recorded again after so long, or so much, whichever comes first."""


class Asked(Protocol):
    """What `enforcers.core.http.target.Where` says of a destination."""

    @property
    def host(self) -> str:
        """In lower case, without a dot at its end."""

    @property
    def port(self) -> int:
        """1 to 65535."""

    @property
    def literal(self) -> Address | None:
        """Where the host is an address."""


class Calls(Protocol):
    """Who makes a call, as far as a tunnel wants to know."""

    @property
    def agent(self) -> str:
        """The name of the agent that acts."""


def start(
    door: Holds, exchange: Exchange, where: Asked, transport: Wire, early: bytes, caller: Calls
) -> Refusal | None:
    """Take over the connection of a client whose CONNECT was decided and recorded; `early` came behind its head.

    A Refusal: nothing was written and the connection is still the caller's. None: it is the tunnel's, which answers, records
    and closes whatever happens.
    """
    if door.tunnels.full(caller.agent):
        limit = door.config.tunnels_per_agent
        door.figures.reached["tunnels_per_agent"] += 1
        return exchange.refuse("overloaded", f"the agent has {limit} tunnels, which is its limit", door.now_ns())
    at_once = ""
    if where.literal is not None:
        at_once = "address instead of a name"
    elif where.port != TLS_PORT:
        at_once = f"port {where.port}"
    if at_once and (refusal := exchange.also(TCP, door.now_ns(), at_once)) is not None:
        return refusal
    tunnel = Tunnel(door, exchange, caller.agent, transport)
    tunnel.begin(where, early, answer=bool(at_once))
    return None


def relay(
    door: Holds, exchange: Exchange, caller: Calls, client: Wire, origin: Wire, status: int,
    to_client: bytes, to_origin: bytes, moved: tuple[int, int] = (0, 0),
) -> None:  # fmt: skip
    """Join two connections that are there, such as those of a 101: what was read already of each goes to the other first.

    `moved` are the bytes that were read of the client and of the origin until now, and `status` is what the effect will say.
    """
    tunnel = Tunnel(door, exchange, caller.agent, client)
    side = Side(tunnel, "origin")
    side.transport = origin
    side.moved = moved[1]
    origin.set_protocol(side)
    tunnel.join(side, to_origin, to_client, status, moved[0])


class Tunnel:
    """One tunnel, from its 200 to its effect. Every way it ends leads through `_over`, once."""

    __slots__ = (
        "_answer", "_client", "_dial_out", "_dialling", "_done", "_door", "_near", "_needed", "_origin", "_recorded",
        "_recorded_at", "_seen", "_status", "_still_since", "_tls", "_waiting", "_where", "agent", "exchange", "round",
    )  # fmt: skip

    def __init__(self, door: Holds, exchange: Exchange, agent: str, client: Wire) -> None:
        self.exchange = exchange
        self.agent = agent
        self.round = -1
        self._door = door
        self._done = False
        self._client = client
        self._near: Side | None = None
        """The client's side, once it is joined."""
        self._origin: Side | None = None
        self._waiting: Waiting | None = None
        self._where: Asked | None = None
        self._answer = False
        """Whether the client still waits for its 200."""
        self._tls = False
        """Whether what the client sent is the beginning of TLS, so that it understands an alert."""
        self._needed = 1
        self._dialling = False
        """Whether it is known where to, and the origin is on its way, or there."""
        self._dial_out: Dial | None = None
        """While it is on its way."""
        self._status = 0
        self._seen = self._recorded = 0
        self._still_since = self._recorded_at = 0.0
        door.tunnels.add(self)

    # -- before the origin is there ----------------------------------------------------------------------------------

    def begin(self, where: Asked, early: bytes, *, answer: bool) -> None:
        """Take the connection. With `answer` tcp:CONNECT is allowed, and the 200 not written; else the hello is read."""
        self._where = where
        self._waiting = Waiting(self, early)
        self._answer = answer
        self._client.set_protocol(self._waiting)
        if answer:
            self._dial()
            return
        self._client.write(ESTABLISHED)
        self._door.tunnels.await_bytes(self)
        if early:
            self.heard()

    def heard(self) -> None:
        """The client has sent something, or its end. Once it is dialled for this only keeps it."""
        waiting, where = self._waiting, self._where
        if waiting is None or where is None:
            return
        data = waiting.data
        if self._dialling:
            if len(data) > BUFFER_BYTES:
                self._client.pause_reading()
            return
        if len(data) < self._needed and not waiting.ended:
            return
        if not data:
            self._fail("client", "the client left before its first bytes")
            return
        found = look(data)
        if isinstance(found, int):
            self._needed = found
            if waiting.ended:
                self._ask(f"the client's {len(data)} bytes are no whole hello")
            return
        self._tls = isinstance(found, Hello)
        if why := differs(found, where.host):
            self._ask(why)
        else:
            self._dial()

    def no_bytes(self) -> None:
        """The first bytes are not there in time: perhaps a protocol in which the origin speaks first."""
        assert self._waiting is not None
        have = len(self._waiting.data)
        self._door.figures.reached["header_ms"] += 1
        self._ask(f"{have} bytes and no whole hello within {self._door.config.header_ms} ms")

    def _ask(self, why: str) -> None:
        if (refusal := self.exchange.also(TCP, self._door.now_ns(), why)) is not None:
            self._refuse(refusal)
        else:
            self._dial()

    def _dial(self) -> None:
        self._door.tunnels.have_bytes(self)
        where = self._where
        assert where is not None
        self._dialling = True
        dial = self._door.dialer.start(where.host, where.port, where.literal, self._far, self._dialled)
        if not self._done and self._near is None:  # else it is over already
            self._dial_out = dial

    def _dialled(self, _: object, fault: Exception | None, address: str) -> None:
        if self._done:
            return
        self._dial_out = None
        try:
            if isinstance(fault, (Refused, Unreachable)):
                self._not_dialled(fault)
            elif fault is not None:
                raise fault
            else:
                self.exchange.address = address
                self._connected()
        except Exception as found:  # a bug of ours must not leave a client waiting for ever
            log.exception("a tunnel was ended by a fault of ours")
            self._fail("fault", f"fault of the door: {type(found).__name__}")

    def _connected(self) -> None:
        waiting, origin = self._waiting, self._origin
        if origin is None or waiting is None:  # it ended in the turn in which the connection was made
            return None
        if origin.gone:
            return self._fail("origin", "the origin left before the first byte")
        if (refusal := self.exchange.may_act(self._door.now_ns())) is not None:
            return self._refuse(refusal)
        # from here on bytes may go up: a crash leaves the call open, and it is recorded as lost
        first, ended = bytes(waiting.data), waiting.ended
        self._waiting = None
        self.join(origin, first, ESTABLISHED if self._answer else b"", 200, len(first))
        if ended:
            near = self._near
            assert near is not None
            near.eof_received()
        return None

    def _not_dialled(self, fault: Refused | Unreachable) -> None:
        now_ns, figures = self._door.now_ns(), self._door.figures
        if isinstance(fault, Refused):
            return self._refuse(self.exchange.refuse(fault.reason, str(fault), now_ns))
        status = 504 if fault.code == "timeout" else 502
        figures.failed[fault.code] += 1
        if fault.limit:
            figures.reached[fault.limit] += 1
        self.exchange.end(Outcome.ERROR, status, 0, 0, now_ns, f"{fault.code}: {fault}")
        return self._turn_away(self.exchange.failed(status, str(fault)), FAILED)

    def _far(self) -> Side:
        self._origin = Side(self, "origin")
        return self._origin

    def left(self) -> None:
        """The client's connection is gone while the origin is not there."""
        self._fail("client", "the client left before the origin was there")

    def _refuse(self, refusal: Refusal) -> None:
        self._door.figures.refused[refusal.reason] += 1
        self._turn_away(refusal)

    def _turn_away(self, refusal: Refusal, alert: bytes = DENIED) -> None:
        """Say why as well as it can still be said, and close. Its effect is recorded already."""
        if self._done:
            return
        if self._answer:
            self._client.write(refusal.encode(close=True))
        elif self._tls:
            self._client.write(alert)
        self._over()
        self._client.close()

    # -- while it is open --------------------------------------------------------------------------------------------

    def join(self, origin: Side, to_origin: bytes, to_client: bytes, status: int, moved_out: int) -> None:
        """Let both ends speak to each other. `moved_out` of the bytes that go up are counted already."""
        self._origin, self._status, self._answer = origin, status, False
        near = self._near = Side(self, "client")
        near.transport = self._client
        near.moved = moved_out
        self._client.set_protocol(near)
        near.join(origin, to_origin)
        origin.join(near, to_client)
        self._client.resume_reading()
        now = self._door.tunnels.loop.time()
        self._still_since = self._recorded_at = now
        self._seen = self._recorded = near.moved + origin.moved
        self._door.tunnels.walk(self)
        if origin.ended:
            self.ended(origin)

    def ended(self, side: Side) -> None:
        """One end sends no more. That is passed on; the other direction goes on until it has ended too."""
        other = side.other
        if self._done or other is None:
            return
        if other.ended:  # both: what waits is still written
            other.transport.close()
            side.transport.close()
        elif not other.gone:
            other.transport.write_eof()

    def lost(self, side: Side, exc: Exception | None) -> None:
        """A connection is gone. One that had sent its end before is how a tunnel closes, any other breaks it off.

        Behind its end a reset is no fault: most programs leave TLS so, closed before they have read the other's goodbye. What
        it had sent is still delivered, and what the other sends has no reader any more.
        """
        other = side.other
        if self._done or other is None:
            return  # over, or not joined yet: whoever joins looks
        if not side.ended:
            said = (getattr(exc, "strerror", None) or str(exc or "connection closed")).lower()
            self._fail(side.name, f"{side.name}: {said}")
        elif other.gone or not unsent(other.transport):
            self._end(Outcome.OK, "")
        else:
            other.write = drop

    def walk(self, now: float, now_ns: int, idle_s: float) -> None:
        """Once a second: record how far it is where that is due, and end it where nothing moves."""
        near, origin = self._near, self._origin
        assert near is not None
        assert origin is not None
        if (near.gone and not unsent(origin.transport)) or (origin.gone and not unsent(near.transport)):
            return self._end(Outcome.OK, "")
        moved = near.moved + origin.moved
        if moved != self._seen:
            self._seen, self._still_since = moved, now
        elif now - self._still_since >= idle_s:
            self._door.figures.reached["tunnel_idle_ms"] += 1
            return self._fail("idle", f"nothing moved for {self._door.config.tunnel_idle_ms} ms")
        new = moved - self._recorded
        if new >= PROGRESS_BYTES or (new and now - self._recorded_at >= PROGRESS_S):
            self._recorded, self._recorded_at = moved, now
            self.exchange.progress(near.moved, origin.moved, now_ns)
        return None

    # -- its end -----------------------------------------------------------------------------------------------------

    def cut(self, reason: str) -> None:
        """The board will not have it any more: both directions stop at once, and what the kernel still holds is dropped."""
        near, origin, now_ns = self._near, self._origin, self._door.now_ns()
        if self._done:
            return
        if near is None or origin is None:
            self._turn_away(self.exchange.withdraw(reason, now_ns))
            return
        self.exchange.cut(reason, near.moved, origin.moved, now_ns)
        self._over()
        reset(self._client)

    def stop(self) -> None:
        """The door stops."""
        self._fail("stopped", "the door stopped")

    def _fail(self, how: str, error: str) -> None:
        if not self._done:
            self._door.figures.failed[how] += 1
            self._end(Outcome.ERROR, error)

    def _end(self, outcome: Outcome, error: str) -> None:
        if self._done:
            return
        near, origin, now_ns = self._near, self._origin, self._door.now_ns()
        moved = (near.moved, origin.moved) if near is not None and origin is not None else (0, 0)
        self.exchange.end(outcome, self._status, *moved, now_ns, error)
        if outcome is Outcome.OK:
            self._over(close)
            self._client.close()
        else:  # not a clean end, and must not look like one
            self._over()
            if near is None or not near.gone:
                reset(self._client)

    def _over(self, leave: Callable[[Wire], None] = reset) -> None:
        """Let go of everything but the client's connection. Its effect is recorded, or waits for room."""
        self._done = True
        dial, near, origin = self._dial_out, self._near, self._origin
        self._door.tunnels.remove(self)
        if dial is not None:
            dial.cancel()
        self._dial_out = self._origin = self._near = self._waiting = self._where = None
        if near is not None:
            near.part()
        if origin is not None:
            origin.part()
        transport = getattr(origin, "transport", None)  # none while it is being connected
        if transport is not None and not transport.is_closing():
            leave(transport)
