"""Connect to a destination: look it up once, judge each address just before it is dialled, dial that address and no other.

    name of a part of Wardline  ->  Refused, nothing is looked up
    lookup                      ->  addresses, at most one lookup for a dial
    each, until one answers     ->  judged, then connected to; one that may not be dialled is passed over

Where nothing answered, and an address was passed over on the way, the dial is refused, not failed: the record must show that a
name led somewhere that it may not.
"""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from enforcers.core.addresses import OWN, Address, Rules, address_text, read_address, refused
from enforcers.doors.egress.own import Own
from enforcers.doors.egress.resolve import Resolver, Unreachable
from schemas.config import Egress
from schemas.errors import AgentFault
from schemas.vocabulary import shown

P = TypeVar("P", bound=asyncio.BaseProtocol)

TRY_S_MIN: Final = 0.25
"""How long one address is tried at least when others follow: `dial_ms` is shared among those that are left."""


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

    def judge(self, address: Address, port: int) -> str:
        """Why this address must not be dialled now; empty where it may be."""
        return refused(address, port, self._rules, self._own.now())

    async def dial(
        self, host: str, port: int, literal: Address | None, factory: Callable[[], P]
    ) -> tuple[asyncio.Transport, P, str]:
        """Connect; returns the transport, what `factory` made for it, and `IP:PORT`.

        Raises Refused, or Unreachable with `dns`, `connect` or `timeout`, within `dns_ms` and `dial_ms`.
        """
        if self._own.is_named(host, port):
            raise Refused(f"`{shown(host)}:{port}` is {OWN}")
        addresses = [literal] if literal is not None else await self._resolver.lookup(host)
        loop = asyncio.get_running_loop()
        end, passed, fault = loop.time() + self._dial_s, "", Unreachable("connect", "")
        for at, address in enumerate(addresses):
            text = address_text(address, port)
            if why := self.judge(address, port):
                passed = passed or f"{why}: {text}"
                continue
            left = end - loop.time()
            if left <= 0:
                break
            share = max(left / (len(addresses) - at), min(TRY_S_MIN, left))
            try:
                async with asyncio.timeout(share):
                    transport, protocol = await loop.create_connection(factory, str(address), port)
            except TimeoutError:
                fault = Unreachable("timeout", f"{text} did not answer within {share:.3g} s", "dial_ms")
            except OSError as caught:
                said = (caught.strerror or str(caught)).lower()
                fault = Unreachable("connect", f"{text}: {said}")
            else:
                _check_peer(transport, address, port)
                return transport, protocol, text
        if passed:
            raise Refused(passed)
        raise fault


def _check_peer(transport: asyncio.BaseTransport, address: Address, port: int) -> None:
    """What was judged is what was dialled: the kernel says so too, unless the connection is gone already."""
    peer = transport.get_extra_info("peername")
    assert peer is None or (peer[1] == port and read_address(peer[0]) == address), f"dialled {peer[:2]}, judged {address}"
