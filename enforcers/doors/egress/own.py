"""Where Wardline itself listens: what no agent may reach through a door, whatever policy and `allow_addresses` say.

    run/NAME.json   the `address` and `metrics` of every process of this home, doors included
    orders          Kafka, ClickHouse and control, wherever the configuration has them, by name and by address

Looked at again every second, and before a dial when a run file has changed: a listener is known from LOOK_S behind the moment
that its run file says so. The file of a process that has died stands until another
takes its name, so its port stays refused: nobody can sit down on the port of a part that is being restarted.
"""

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from enforcers.core.addresses import Address, OwnSet, read_address
from enforcers.doors.egress.resolve import Resolver, Unreachable

LOOK_S: Final = 0.005
"""Dials within so long share one look at whether a run file has changed: there may be thousands in a second."""

REFRESH_S: Final = 1.0
"""How often the run files are read."""

NAMES_S: Final = 30.0
"""How often the names of Kafka, ClickHouse and control are looked up."""

BEGIN_S: Final = 1.0
"""How long a door that starts waits for these. One that leads nowhere by then is refused by its name alone, until it does."""

RUN_FILE_BYTES_MAX: Final = 1 << 20
"""Bytes of a run file. Of a longer one nothing is read."""

_FIELDS: Final = ("address", "metrics")
"""Of a run file: those that hold a `HOST:PORT` or several with commas between."""


class Own:
    """One door's knowledge of Wardline's listeners."""

    def __init__(self, run: Path, named: Iterable[str]) -> None:
        """`run` is the home's folder of run files, `named` the `HOST:PORT` of the configuration, the door's own among them."""
        self._run = run
        self._run_text = str(run)
        self._changed_ns = 0
        self._looked = 0.0
        self._named = frozenset(pair for text in named if (pair := read_pair(text)) is not None)
        self._looked_up: dict[tuple[str, int], frozenset[Address]] = {}
        self._stamps: dict[str, tuple[int, int, frozenset[tuple[str, int]]]] = {}
        self.current = OwnSet()
        self.refresh()

    def is_named(self, host: str, port: int) -> bool:
        """Whether this is what the configuration calls a part of Wardline: refused before anything is looked up."""
        return (host.lower().removesuffix(".").strip("[]"), port) in self._named

    def now(self) -> OwnSet:
        """As `refresh`, but reads only when a run file was made, replaced or removed since, and looks no sooner than LOOK_S.

        Two changes within one tick of the file system's clock may look like one: `refresh` once a second finds the other.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return self.current
        self._looked = now
        with contextlib.suppress(OSError):
            if os.stat(self._run_text).st_mtime_ns == self._changed_ns:
                return self.current
        return self.refresh()

    def refresh(self) -> OwnSet:
        """Read the run files that have changed. What cannot be read now counts as it did before."""
        with contextlib.suppress(OSError):  # before reading: what changes meanwhile is read next time
            self._changed_ns = self._run.stat().st_mtime_ns
        pairs, stamps = set(self._named), {}
        for path in self._run.glob("*.json"):
            said = self._stamps.get(path.name)
            try:
                stat = path.stat()
                if said is None or said[:2] != (stat.st_ino, stat.st_mtime_ns):
                    said = (stat.st_ino, stat.st_mtime_ns, _said(path))
            except (OSError, ValueError):
                if said is None:
                    continue
            stamps[path.name] = said
            pairs |= said[2]
        self._stamps = stamps
        exact, everywhere = set(), set()
        for host, port in pairs:
            for address in self._addresses(host, port):
                if address.is_unspecified:
                    everywhere.add(port)
                else:
                    exact.add((address, port))
        self.current = OwnSet(frozenset(exact), frozenset(everywhere), is_local)
        return self.current

    def _addresses(self, host: str, port: int) -> Iterable[Address]:
        address = read_address(host)
        if address is not None:
            mapped = getattr(address, "ipv4_mapped", None)
            return (address,) if mapped is None else (address, mapped)
        if host == "localhost" or host.endswith(".localhost"):
            return (read_address("127.0.0.1"), read_address("::1"))  # type: ignore[return-value]
        return self._looked_up.get((host, port), frozenset())

    async def begin(self, resolver: Resolver) -> None:
        """Before the first call: learn where the configured names lead, or what can be learned within BEGIN_S."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEGIN_S):
                await self.look_up(resolver)

    async def keep(self, resolver: Resolver) -> None:
        """Know it for as long as the door lives: a task of the door's."""
        while True:
            await self.look_up(resolver)
            for _ in range(int(NAMES_S / REFRESH_S)):
                await asyncio.sleep(REFRESH_S)
                self.refresh()

    async def look_up(self, resolver: Resolver) -> None:
        """Learn where the configured names lead now. One that cannot be resolved is still where it was."""
        names = [pair for pair in self._named if read_address(pair[0]) is None]
        await asyncio.gather(*(self._look_up(pair, resolver) for pair in names))
        self.refresh()

    async def _look_up(self, pair: tuple[str, int], resolver: Resolver) -> None:
        with contextlib.suppress(Unreachable):
            self._looked_up[pair] = frozenset(await resolver.lookup(pair[0]))
            self.refresh()


def read_pair(text: str) -> tuple[str, int] | None:
    """`HOST:PORT` as a name in lower case or an address without brackets, and the port; None for anything else."""
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]").lower().removesuffix(".")
    if not port.isascii() or not port.isdigit() or len(port) > 5 or not 1 <= int(port) <= 65535:
        return None
    return ("0.0.0.0" if host in ("", "*") else host), int(port)


def _said(path: Path) -> frozenset[tuple[str, int]]:
    if path.stat().st_size > RUN_FILE_BYTES_MAX:
        return frozenset()
    said = json.loads(path.read_bytes())
    if not isinstance(said, dict):
        return frozenset()
    texts = [said[field] for field in _FIELDS if isinstance(said.get(field), str)]
    return frozenset(pair for text in texts for part in text.split(",") if (pair := read_pair(_bare(part))) is not None)


def _bare(text: str) -> str:
    """`HOST:PORT` of an address that may be written as a URL."""
    return text.partition("://")[2].partition("/")[0] if "://" in text else text


def is_local(address: Address) -> bool:
    """Whether the kernel counts this address as this machine's: then a socket may be bound to it."""
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
