"""Connect to a destination: look it up once, judge each address just before it is dialled, dial that address and no other.

    name of a part of Wardline  ->  Refused, nothing is looked up
    lookup                      ->  addresses, at most one lookup for a dial
    each, until one answers     ->  judged, then connected to; one that may not be dialled is passed over

Where nothing answered, and an address was passed over on the way, the dial is refused, not failed: the record must show that a
name led somewhere that it may not.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final, TypeVar

from enforcers.core.addresses import OWN, Address, Rules, address_text, read_address, refused
from enforcers.doors.egress.own import Own
from enforcers.doors.egress.resolve import Resolver, Unreachable
from schemas.config import Egress
from schemas.errors import AgentFault
from schemas.vocabulary import shown

P = TypeVar("P", bound=asyncio.BaseProtocol)
R = TypeVar("R")

TRY_S_MIN: Final = 0.25
"""How long one address is tried at least when others follow: `dial_ms` is shared among those that are left."""

JUDGED_MAX: Final = 4096
"""Addresses with a port whose judgement is remembered for as long as nothing changes where Wardline itself listens."""

_LATE: Final = "its time is up"
"""What a dial is cancelled with that takes too long."""


class Refused(AgentFault):
    """No address of the destination may be dialled. Nothing went out."""

    reason = "address"


class Dialer:
    """One door's way to origins. Used on the thread of its loop."""

    def __init__(self, config: Egress, rules: Rules, own: Own, resolver: Resolver) -> None:
        self._dial_s = config.dial_ms / 1000
        self._rules = rules
        self._own = own
        self._resolver = resolver
        self._loop: asyncio.AbstractEventLoop | None = None
        self._judged: dict[tuple[Address, int], str] = {}
        self._judged_by = own.current

    def judge(self, address: Address, port: int) -> str:
        """Why this address must not be dialled now; empty where it may be.

        Remembered until `own` says something new, which it does at least once a second; not where it depends on the addresses
        that this machine has, since these may change at any time.
        """
        own = self._own.now()
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
    ) -> tuple[asyncio.Transport, P, str]:
        """Connect; returns the transport, what `factory` made for it, and `IP:PORT`.

        Raises Refused, or Unreachable with `dns`, `connect` or `timeout`, within `dns_ms` and `dial_ms`.
        """
        if self._own.is_named(host, port):
            raise Refused(f"`{shown(host)}:{port}` is {OWN}")
        if literal is not None:
            addresses = [literal]
        elif (known := self._resolver.known(host)) is not None:
            addresses = known
        else:
            addresses = await self._resolver.lookup(host)
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        loop = self._loop
        end, passed, fault = loop.time() + self._dial_s, "", Unreachable("connect", "")
        for at, address in enumerate(addresses):
            text, shown_as = _texts(address, port)
            if why := self.judge(address, port):
                passed = passed or f"{why}: {shown_as}"
                continue
            left = end - loop.time()
            if left <= 0:
                break
            share = max(left / (len(addresses) - at), min(TRY_S_MIN, left))
            try:
                transport, protocol = await _within(share, loop.create_connection(factory, text, port), loop)
            except TimeoutError:
                fault = Unreachable("timeout", f"{shown_as} did not answer within {share:.3g} s", "dial_ms")
            except OSError as caught:
                said = (caught.strerror or str(caught)).lower()
                fault = Unreachable("connect", f"{shown_as}: {said}")
            else:
                _check_peer(transport, address, text, port)
                return transport, protocol, shown_as
        if passed:
            raise Refused(passed)
        raise fault


async def _within(seconds: float, waits: Awaitable[R], loop: asyncio.AbstractEventLoop) -> R:
    """As `asyncio.timeout`, in less than half of its time: there is a dial for each tunnel. Raises TimeoutError."""
    task = asyncio.current_task(loop)
    assert task is not None
    timer = loop.call_later(seconds, task.cancel, _LATE)
    try:
        return await waits
    except asyncio.CancelledError as cancelled:
        if cancelled.args != (_LATE,) or task.uncancel():  # somebody else's, perhaps beside ours
            raise
        raise TimeoutError from None
    finally:
        timer.cancel()


@lru_cache(JUDGED_MAX)
def _texts(address: Address, port: int) -> tuple[str, str]:
    """An address as the kernel is given it, and as it stands in a record with its port."""
    return str(address), address_text(address, port)


def _check_peer(transport: asyncio.BaseTransport, address: Address, text: str, port: int) -> None:
    """What was judged is what was dialled: the kernel says so too, unless the connection is gone already."""
    peer = transport.get_extra_info("peername")
    good = peer is None or (peer[1] == port and (peer[0] == text or read_address(peer[0]) == address))
    assert good, f"dialled {peer[:2]}, judged {address}"
