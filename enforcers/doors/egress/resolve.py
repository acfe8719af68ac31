"""Where a name leads: one lookup, bounded, and kept no longer than its answer says.

With `[egress] dns_servers` these servers are asked for A and AAAA at once, by UDP and, where an answer is cut, TCP; the hosts
file is not read and no search list is used. Without them the system's resolver is asked, in threads of its own: it blocks.
Whoever waits for the same name waits for the same lookup. The order of a call makes sure that no refused name comes here.
"""

import asyncio
import queue
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver

from enforcers.core.addresses import Address, read_address
from schemas.config import Egress
from schemas.errors import OperatorFault, PeerFault
from schemas.vocabulary import shown

ADDRESSES_MAX: Final = 16
"""Addresses of one name that are used: the first ones. More are not dialled."""

LOOKUPS_MAX: Final = 512
"""Names that are looked up at one time. A further one fails at once, as `dns`."""

CACHED_MAX: Final = 4096
"""Names that are kept. The one kept longest goes."""

CACHED_S: Final = 60.0
"""How long an answer is kept at most, whatever it says itself."""

SYSTEM_S: Final = 1.0
"""How long an answer of the system's resolver is kept, which does not say for how long it holds."""

SECOND_S: Final = 0.25
"""How long addresses of one family wait for an answer about the other."""

THREADS: Final = 16
"""Lookups that the system's resolver makes at one time."""

_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


class Unreachable(PeerFault):
    """A destination cannot be reached now; `code` is the short word for how: `dns`, `connect`, `timeout`.

    `limit` names the limit of time that was reached, `dns_ms` or `dial_ms`; empty where none was.
    """

    def __init__(self, code: str, message: str, limit: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.limit = limit


def parse_servers(texts: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """Read `[egress] dns_servers`: `192.0.2.53`, `192.0.2.53:5353`, `2001:db8::53`, `[2001:db8::53]:5353`.

    Raises OperatorFault for what is no address or has no port that there is.
    """
    return tuple(_server(text) for text in texts)


def _server(text: str) -> tuple[str, int]:
    where = f"egress.dns_servers: `{shown(text)}`"
    found = re.fullmatch(r"\[([^\]]*)\](?::([0-9]{1,5}))?|([0-9.]+)(?::([0-9]{1,5}))?|([0-9A-Fa-f:.]+)", text)
    host = (found[1] or found[3] or found[5] or "") if found else ""
    if found is None or read_address(host) is None:
        raise OperatorFault(f"{where} is no `ADDRESS` or `ADDRESS:PORT`")
    port = int(found[2] or found[4] or 53)
    if not 1 <= port <= 65535:
        raise OperatorFault(f"{where}: port {port} is outside 1 to 65535")
    return host, port


class Resolver:
    """One door's. Used on the thread of its loop."""

    def __init__(self, config: Egress) -> None:
        """Raises OperatorFault for a name server that is none."""
        self.lookups = 0
        """Names that were looked up, so far."""
        self._wait_s = config.dns_ms / 1000
        servers = parse_servers(config.dns_servers)
        self._ask = _Servers(servers, self._wait_s).ask if servers else _System().ask
        self._known: OrderedDict[str, tuple[float, list[Address]]] = OrderedDict()
        self._asked: dict[str, asyncio.Future[list[Address]]] = {}

    def known(self, host: str) -> list[Address] | None:
        """The addresses of a name whose last answer still holds."""
        found = self._known.get(host)
        if found is None:
            return None
        if found[0] < time.monotonic():
            del self._known[host]
            return None
        return found[1]

    async def lookup(self, host: str) -> list[Address]:
        """The addresses of a name, at least one. Raises Unreachable, as `dns`, or `timeout` after `dns_ms`.

        A text that some resolver would take for an address in an odd spelling is no name.
        """
        if (known := self.known(host)) is not None:
            return known
        if not host or _NUMBER.fullmatch(host.rpartition(".")[2]) or ":" in host:
            raise Unreachable("dns", f"`{shown(host)}` is no name")
        loop = asyncio.get_running_loop()
        waiting = self._asked.get(host)
        if waiting is None:
            if len(self._asked) >= LOOKUPS_MAX:
                raise Unreachable("dns", f"{len(self._asked)} names are looked up already, limit is {LOOKUPS_MAX}")
            waiting = self._asked[host] = loop.create_task(self._look(host))
            waiting.add_done_callback(_looked_at)
        try:
            async with asyncio.timeout(self._wait_s):
                return await asyncio.shield(waiting)  # others may wait for it too
        except TimeoutError:
            raise Unreachable("timeout", f"`{shown(host)}` was not resolved within {self._wait_s:g} s", "dns_ms") from None

    async def _look(self, host: str) -> list[Address]:
        self.lookups += 1
        try:
            found, holds_s = await self._ask(host)
        finally:
            del self._asked[host]
        if not found:
            raise Unreachable("dns", f"`{shown(host)}` has no address")
        found = list(dict.fromkeys(found))[:ADDRESSES_MAX]
        if holds_s > 0:
            self._known[host] = time.monotonic() + min(holds_s, CACHED_S), found
            if len(self._known) > CACHED_MAX:
                self._known.popitem(last=False)
        return found


def _looked_at(done: asyncio.Future[list[Address]]) -> None:
    """A lookup that nobody waits for any more may fail in peace."""
    if not done.cancelled():
        done.exception()


class _Servers:
    """The operator's name servers."""

    def __init__(self, servers: tuple[tuple[str, int], ...], wait_s: float) -> None:
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in servers]
        resolver.lifetime = wait_s
        resolver.timeout = min(2.0, wait_s)  # of one try
        self._resolver = resolver
        self._wait_s = wait_s

    async def ask(self, host: str) -> tuple[list[Address], float]:
        """The addresses and for how many seconds they hold."""
        try:
            name = dns.name.from_text(host)
        except dns.exception.DNSException as fault:
            raise Unreachable("dns", f"`{shown(host)}` is no name") from fault
        tasks = [
            asyncio.ensure_future(self._resolver.resolve(name, kind, search=False, raise_on_no_answer=False))
            for kind in (dns.rdatatype.A, dns.rdatatype.AAAA)
        ]
        try:
            end = asyncio.get_running_loop().time() + self._wait_s
            done, _ = await asyncio.wait(tasks, timeout=self._wait_s, return_when=asyncio.FIRST_COMPLETED)
            left = max(0.0, end - asyncio.get_running_loop().time())
            enough = any(not task.exception() and task.result().rrset for task in done)
            await asyncio.wait(tasks, timeout=min(SECOND_S, left) if enough else left)
            return _gathered(host, [task for task in tasks if task.done()])
        finally:
            for task in tasks:
                task.cancel()


def _gathered(host: str, tasks: list[asyncio.Task[dns.resolver.Answer]]) -> tuple[list[Address], float]:
    """What the answers say together. Raises Unreachable when none says anything."""
    found: list[Address] = []
    holds_s = CACHED_S
    faults: list[BaseException] = []
    for task in tasks:
        if fault := task.exception():
            faults.append(fault)
            continue
        answer = task.result()
        if answer.rrset is not None:
            holds_s = min(holds_s, answer.chaining_result.minimum_ttl)
            found += [address for record in answer.rrset if (address := read_address(record.to_text())) is not None]
    if found or (tasks and not faults):
        return found, holds_s
    if any(isinstance(fault, dns.resolver.NXDOMAIN) for fault in faults):
        raise Unreachable("dns", f"`{shown(host)}` does not exist")
    if not tasks or any(isinstance(fault, dns.exception.Timeout) for fault in faults):
        raise Unreachable("timeout", f"no name server answered about `{shown(host)}`", "dns_ms")
    raise Unreachable("dns", f"no name server could say where `{shown(host)}` is")


class _System:
    """The system's resolver. Its threads are daemons: one that hangs in a lookup keeps no door from leaving."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[str, asyncio.AbstractEventLoop, asyncio.Future[Any]]] = queue.SimpleQueue()
        self._threads = 0
        self._busy = 0

    async def ask(self, host: str) -> tuple[list[Address], float]:
        """The addresses and for how many seconds they are kept. Waits as long as the system does: never cut short, so that
        what is counted as busy is."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[Address]] = loop.create_future()
        self._busy += 1
        if self._busy > self._threads < THREADS:
            self._threads += 1
            threading.Thread(target=self._work, name=f"resolve-{self._threads}", daemon=True).start()
        self._jobs.put((host, loop, done))
        try:
            return await done, SYSTEM_S
        finally:
            self._busy -= 1

    def _work(self) -> None:
        while True:
            host, loop, done = self._jobs.get()
            try:
                found, fault = _system_addresses(host), None
            except (OSError, UnicodeError) as caught:
                found, fault = [], caught
            try:
                loop.call_soon_threadsafe(_tell(done, host, found, fault))
            except RuntimeError:  # the loop is closed: nobody waits
                return


def _tell(done: asyncio.Future[list[Address]], host: str, found: list[Address], fault: Exception | None) -> Callable[[], None]:
    def tell() -> None:
        if done.done():
            return
        if fault is None:
            done.set_result(found)
        else:
            said = str(getattr(fault, "strerror", None) or fault).lower()
            done.set_exception(Unreachable("dns", f"`{shown(host)}` cannot be resolved: {said}"))

    return tell


def _system_addresses(host: str) -> list[Address]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [address for *_, where in found if (address := read_address(str(where[0]))) is not None]
