"""Connect to a destination: look it up once, judge each address just before it is dialled, dial that address and no other.

    name of a part of Wardline  ->  Refused, nothing is looked up
    lookup                      ->  addresses, at most one lookup for a dial
    each, until one answers     ->  judged, then connected to; one that may not be dialled is passed over

Where nothing answered, and an address was passed over on the way, the dial is refused, not failed: the record must show that a
name led somewhere that it may not.
"""

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, TypeAlias, TypeVar

from enforcers.core.addresses import OWN, Address, Rules, address_text, refused
from enforcers.doors.egress.own import Own
from enforcers.doors.egress.resolve import Resolver, Unreachable
from ext.wires import Wire, Wires
from schemas.config import Egress
from schemas.errors import AgentFault
from schemas.vocabulary import shown

P = TypeVar("P", bound=asyncio.BaseProtocol)

Told: TypeAlias = Callable[[tuple[Wire, Any] | None, Exception | None, str], None]

TRY_S_MIN: Final = 0.25
"""How long one address is tried at least when others follow: `dial_ms` is shared among those that are left."""

JUDGED_MAX: Final = 4096
"""Addresses with a port whose judgement is remembered for as long as nothing changes where Wardline itself listens."""


class Refused(AgentFault):
    """No address of the destination may be dialled. Nothing went out."""

    reason = "address"


class Dialer:
    """One door's way to origins. Used on the thread of its loop."""

    def __init__(self, config: Egress, rules: Rules, own: Own, resolver: Resolver) -> None:
        self.dial_s = config.dial_ms / 1000
        self._rules = rules
        self.own = own
        self.resolver = resolver
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wires: Wires | None = None
        self._judged: dict[tuple[Address, int], str] = {}
        self._judged_by = own.current

    def judge(self, address: Address, port: int) -> str:
        """Why this address must not be dialled now; empty where it may be.

        Remembered until `own` says something new, which it does at least once a second; not where it depends on the addresses
        that this machine has, since these may change at any time.
        """
        own = self.own.now()
        if port in own.everywhere:
            return refused(address, port, self._rules, own)
        if own is not self._judged_by or len(self._judged) >= JUDGED_MAX:
            self._judged_by, self._judged = own, {}
        why = self._judged.get((address, port))
        if why is None:
            why = self._judged[address, port] = refused(address, port, self._rules, own)
        return why

    async def dial(
        self, host: str, port: int, literal: Address | None, factory: Callable[[], P]
    ) -> tuple[Wire, P, str]:
        """Connect; returns the transport, what `factory` made for it, and `IP:PORT`.

        Raises Refused, or Unreachable with `dns`, `connect` or `timeout`, within `dns_ms` and `dial_ms`.
        """
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        made: list[tuple[Wire, P]] = []

        def told(made_of: Any, fault: Exception | None, address: str) -> None:
            if done.done():
                return
            if fault is not None:
                done.set_exception(fault)
            else:
                made.append(made_of)
                done.set_result(address)

        dial = self.start(host, port, literal, factory, told)
        try:
            address = await done
        finally:
            dial.cancel()
        return *made[0], address

    def start(self, host: str, port: int, literal: Address | None, factory: Callable[[], Any], told: Told) -> "Dial":
        """The same without a task: `told` is called once, with (transport, protocol) and `IP:PORT`, or with what `dial` raises.

        That may be before this returns; not behind `Dial.cancel`.
        """
        return Dial(self, host, port, literal, factory, told)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The one on which it is used."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    @property
    def wires(self) -> Wires:
        """The connections of that loop, those that others make to us too."""
        if self._wires is None:
            self._wires = Wires(self.loop)
        return self._wires


class Dial:
    """One dial on its way."""

    __slots__ = (
        "_addresses", "_at", "_connecting", "_dialer", "_end", "_factory", "_fault", "_over", "_passed", "_port", "_share",
        "_shown", "_timer", "_told", "_waits",
    )  # fmt: skip

    def __init__(
        self, dialer: Dialer, host: str, port: int, literal: Address | None, factory: Callable[[], Any], told: Told
    ) -> None:
        self._dialer = dialer
        self._port = port
        self._factory = factory
        self._told = told
        self._over = False
        self._waits: asyncio.Future[Any] | None = None
        """What it waits for."""
        self._timer: asyncio.TimerHandle | None = None
        self._addresses: list[Address] = []
        self._at = 0
        self._end = self._share = 0.0
        self._passed = self._shown = ""
        self._fault: Exception = Unreachable("connect", "")
        self._connecting: Wire | None = None
        if dialer.own.is_named(host, port):
            self._tell(None, Refused(f"`{shown(host)}:{port}` is {OWN}"))
        elif literal is not None:
            self._begin([literal])
        elif (known := dialer.resolver.known(host)) is not None:
            self._begin(known)
        else:
            self._waits = dialer.loop.create_task(dialer.resolver.lookup(host))
            self._waits.add_done_callback(self._looked_up)

    def cancel(self) -> None:
        """Nobody waits for it any more. A connection that is made already is its protocol's to close."""
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.give_up()
        if self._waits is not None:
            self._waits.cancel()

    def _tell(self, made: tuple[Wire, Any] | None, fault: Exception | None) -> None:
        told, self._over = self._told, True
        self._told = _nobody  # neither holds the other any more
        told(made, fault, self._shown)

    def _looked_up(self, found: "asyncio.Future[list[Address]]") -> None:
        if self._over:
            if not found.cancelled():
                found.exception()
            return
        fault = found.exception() if not found.cancelled() else Unreachable("dns", "the lookup was given up")
        if fault is None:
            self._begin(found.result())
        else:
            assert isinstance(fault, Exception)
            self._tell(None, fault)

    def _begin(self, addresses: list[Address]) -> None:
        self._addresses = addresses
        self._end = self._dialer.loop.time() + self._dialer.dial_s
        self._next()

    def _next(self) -> None:
        """Try the next address that may be dialled."""
        dialer, addresses, loop = self._dialer, self._addresses, self._dialer.loop
        while self._at < len(addresses):
            address = addresses[self._at]
            text, self._shown = _texts(address, self._port)
            self._at += 1
            if why := dialer.judge(address, self._port):
                self._passed = self._passed or f"{why}: {self._shown}"
                continue
            left = self._end - loop.time()
            if left <= 0:
                break
            self._share = max(left / (len(addresses) - self._at + 1), min(TRY_S_MIN, left))
            try:
                self._connecting = dialer.wires.connect(text, self._port, self._factory, self._made)
            except OSError as caught:
                self._fault = self._refused_by(caught)
                continue
            self._timer = loop.call_later(self._share, self._late)
            return
        self._tell(None, Refused(self._passed) if self._passed else self._fault)

    def _refused_by(self, caught: OSError) -> Unreachable:
        return Unreachable("connect", f"{self._shown}: {(caught.strerror or str(caught)).lower()}")

    def _late(self) -> None:
        """This address has had its time."""
        if self._connecting is not None and not self._over:
            self._connecting.give_up()
            self._fault = Unreachable("timeout", f"{self._shown} did not answer within {self._share:.3g} s", "dial_ms")
            self._next()

    def _made(self, protocol: Any, fault: Exception | None) -> None:
        """It is connected to this address, or it cannot be."""
        wire, self._connecting = self._connecting, None
        assert wire is not None
        assert self._timer is not None
        self._timer.cancel()
        if self._over:
            return
        if fault is None:
            self._tell((wire, protocol), None)
        elif isinstance(fault, OSError):
            self._fault = self._refused_by(fault)
            self._next()
        else:  # a fault of ours: whoever waits says so
            self._tell(None, fault)


def _nobody(_made: object, _fault: Exception | None, _address: str) -> None:
    """Whoever waited was told."""


@lru_cache(JUDGED_MAX)
def _texts(address: Address, port: int) -> tuple[str, str]:
    """An address as the kernel is given it, and as it stands in a record with its port."""
    return str(address), address_text(address, port)
