"""One egress door: what all of its connections share, and what is open at it.

Everything here is done by the thread of its event loop. A call is in `open` from its record to its effect, whether it waits for
a connection, is out, or is a tunnel: whoever looks at the board asks each of them, and cuts those that may not go on.
"""

import os
import time
from typing import Final, Protocol

from enforcers.core.exchange import Desk, Exchange
from enforcers.core.flood import Flood
from enforcers.doors.egress.client import Client
from enforcers.doors.egress.dial import Dialer
from enforcers.doors.egress.flight import Flight
from enforcers.doors.egress.identify import Identify
from enforcers.doors.egress.last import Connects
from enforcers.doors.egress.metrics import Figures
from enforcers.doors.egress.own import Own
from enforcers.doors.egress.pool import Pool
from enforcers.doors.egress.tunnels import Tunnels
from enforcers.doors.obeyed import Obeyed
from enforcers.doors.spooler import Spooler
from schemas.config import Egress

RANDOM_BYTES: Final = 4096
"""Drawn at once: trace ids are no secret, and a system call for each costs as much as its use."""


class Cuttable(Protocol):
    """Something that is open: a call that waits or is out, or a tunnel."""

    exchange: Exchange

    def cut(self, reason: str) -> None:
        """The board will not have it any more: end it, record that, and let nothing more of it pass."""

    def stop(self) -> None:
        """The door stops: end it, and record that."""


class Door:
    """One start of a door."""

    def __init__(
        self, name: str, config: Egress, *, spooler: Spooler, obeyed: Obeyed, identify: Identify, dialer: Dialer, own: Own,
        query_key: bytes,
    ) -> None:  # fmt: skip
        self.name = name
        self.config = config
        self.spooler = spooler
        self.obeyed = obeyed
        self.identify = identify
        self.dialer = dialer
        self.own = own
        self.query_key = query_key
        self.desk = Desk(
            obeyed.gate, obeyed, spooler.append, spooler.complete, spooler.boot, identify.still
        )  # fmt: skip
        self.flood = Flood(name)
        self.figures = Figures()
        self.clients: set[Client] = set()
        """Connections of clients that are not tunnels."""
        self.per_agent: dict[str, int] = {}
        """How many of these have shown to be an agent's."""
        self.open: set[Cuttable] = set()
        self.tunnels: Tunnels = Tunnels(self)
        self.connects = Connects()
        self.pool = Pool(self)
        self.stopping = False
        self.failed = False
        """Whether the door cannot serve any more, and must be started again."""
        self.answer_s, self.body_s, self.idle_s = config.answer_ms / 1000, config.body_ms / 1000, config.idle_ms / 1000
        self._random = b""
        self._at = 0
        self.figures.gauges.update(
            connections=lambda: len(self.clients), tunnels=lambda: len(self.tunnels), open=lambda: len(self.open),
            upstreams_idle=lambda: self.pool.idle, effects_waiting=lambda: len(self.desk.waiting),
            flood_counted=lambda: self.flood.counted,
        )  # fmt: skip

    # -- what a call needs -------------------------------------------------------------------------------------------

    now_ns = staticmethod(time.time_ns)
    """Nanoseconds since 1970."""

    def mint(self) -> bytes:
        """16 random bytes, never all zero."""
        at = self._at
        if at >= len(self._random):
            self._random, at = os.urandom(RANDOM_BYTES), 0
        self._at = at + 16
        return self._random[at : at + 16]

    # -- connections -------------------------------------------------------------------------------------------------

    def factory(self) -> Client:
        """What the event loop makes for each connection that it accepts."""
        return Client(self)

    def admit(self, client: Client) -> bool:
        """Whether there is room for another connection; then it is counted."""
        if self.stopping or len(self.clients) + len(self.tunnels) >= self.config.connections:
            self.figures.reached["connections"] += not self.stopping
            return False
        self.clients.add(client)
        return True

    def belongs(self, client: Client, agent: str) -> bool:
        """Count a connection as an agent's, no more as another's; whether that agent may have so many."""
        counts = self.per_agent
        if counts.get(agent, 0) >= self.config.connections_per_agent:
            self.figures.reached["connections_per_agent"] += 1
            return False
        self.disowned(client)
        client.agent = agent
        counts[agent] = counts.get(agent, 0) + 1
        return True

    def disowned(self, client: Client) -> None:
        """It is nobody's any more."""
        agent, client.agent = client.agent, ""
        if agent:
            left = self.per_agent.pop(agent) - 1
            if left:
                self.per_agent[agent] = left

    def left(self, client: Client) -> None:
        """It is gone, or has become a tunnel's."""
        self.clients.discard(client)
        self.disowned(client)

    # -- the board ---------------------------------------------------------------------------------------------------

    def ask_all(self, *, stale_too: bool) -> None:
        """Ask everything that is open whether it may go on; cut what may not.

        Where the board is stale, what waits is refused and what is out may stay for `stale_tunnel_ms`: then `stale_too`.
        """
        for one in list(self.open):
            reason = one.exchange.stopped()
            if not reason:
                caller = one.exchange.caller
                if caller is not None and not self.identify.still(caller):
                    reason = "identity"
            if reason == "stale" and not stale_too and not (isinstance(one, Flight) and one.waits):
                continue
            if reason:
                self.figures.refused[reason] += 1
                if reason == "stale" and stale_too:
                    self.figures.reached["stale_tunnel_ms"] += 1
                one.cut(reason)

    def ask_tokens(self) -> None:
        """Cut what is open by a token that has run out, or whose issuer's key is gone: the board says nothing of these."""
        for one in list(self.open):
            caller = one.exchange.caller
            if caller is not None and caller.until_s and not self.identify.still(caller):
                self.figures.refused["identity"] += 1
                one.cut("identity")

    def walk(self) -> None:
        """Once a second: calls and tunnels say how far they are, and what is open by a token is asked whether that holds."""
        now_ns = self.now_ns()
        for one in list(self.open):
            if isinstance(one, Flight):
                one.walk(now_ns)
        self.ask_tokens()

    def stop_calls(self) -> None:
        """The door stops: what is still out ends here."""
        for one in list(self.open):
            one.stop()

    def leave_idle(self) -> None:
        """Close the connections that have no request in hand."""
        for client in list(self.clients):
            client.leave_if_idle()

    @property
    def calls_out(self) -> int:
        """Calls that wait or are out, without tunnels."""
        return len(self.open) - len(self.tunnels)

    def write_counts(self) -> bool:
        """Record the refusals that have no call of their own; whether there was room for all that are due."""
        return not self.desk.waiting and self.flood.write(self.desk.append, self.now_ns(), everything=self.stopping)

    def fail(self) -> None:
        """Serve nothing more: a part of the door that must work does not."""
        self.failed = self.stopping = True
