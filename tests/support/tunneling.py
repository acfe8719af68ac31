"""A door that speaks CONNECT and nothing else, inside a test: the real core, board, dialer, resolver and tunnels, a real port.

Records are kept in a list in place of a spool, so that a test can read them at once. What is dialled at port 443 goes to the
test's own origin, which may not listen there.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from enforcers.core.addresses import Address, parse_rules
from enforcers.core.call import Call, Record, target_of
from enforcers.core.chain import make_chain
from enforcers.core.exchange import Desk, Exchange
from enforcers.core.gate import Gate
from enforcers.core.http.head import parse_request
from enforcers.core.http.target import read_target
from enforcers.doors.egress.dial import Dial, Dialer, Told
from enforcers.doors.egress.metrics import Figures
from enforcers.doors.egress.own import Own
from enforcers.doors.egress.resolve import Resolver
from enforcers.doors.egress.tunnel import relay, start
from enforcers.doors.egress.tunnels import Tunnels
from ext.board import BoardWriter
from ext.decide import Matcher
from ext.wires import Listener, Wire
from schemas.bundle import Bundle, Rule
from schemas.config import Egress
from schemas.records import STRING_FIELDS, Kind, Outcome
from schemas.vocabulary import agent_uid, user_uid
from tests.support.boards import BOOT, board, reader

AGENT = "researcher"
CHAIN = make_chain((user_uid("alice"), agent_uid(AGENT)))
OPEN = (Rule(id="web", forbid=False, action=("==", 'Action::"http:CONNECT"')),)
"""Lets every CONNECT out, and no tunnel that is not TLS with the host's name."""
RAW = (*OPEN, Rule(id="raw", forbid=False, action=("==", 'Action::"tcp:CONNECT"')))


@dataclass(frozen=True)
class Caller:
    agent: str


@dataclass(frozen=True)
class Said:
    """A record, with names."""

    kind: Kind
    seq: int
    denied: bool
    outcome: Outcome
    status: int
    bytes_out: int
    bytes_in: int
    reason: str
    error: str
    address: str


def read_record(record: Record) -> Said:
    texts = dict(zip(STRING_FIELDS, record[20], strict=True))
    return Said(
        Kind(record[0]), record[1], record[4] == 0, Outcome(record[5]), record[8], record[10], record[11], texts["reason"],
        texts["error"], texts["address"],
    )  # fmt: skip


class Policies:
    """Always ready."""

    may_decide = True

    def follow(self) -> bool:
        return False


class Routed(Dialer):
    """Dials another port in place of 443; everything else, the judging too, is as ever."""

    tls_port = 443

    def start(self, host: str, port: int, literal: Address | None, factory: Any, told: Told) -> Dial:
        return super().start(host, self.tls_port if port == 443 else port, literal, factory, told)


class MiniDoor:
    """One door; made and used inside a running loop."""

    def __init__(self, folder: Path, rules: tuple[Rule, ...] = OPEN, own: tuple[str, ...] = (), **config: Any) -> None:
        usual = {"header_ms": 400, "dial_ms": 2_000, "dns_ms": 1_000, "allow_addresses": ("127.0.0.0/8",)}
        self.config = Egress(**{**usual, **config})
        self.folder = folder
        self.board: BoardWriter = board(folder)
        self.gate = Gate(reader(folder), Matcher(Bundle(rules=rules).encode()))
        self.records: list[Record] = []
        self.desk = Desk(self.gate, Policies(), self._append, lambda *_: False, BOOT)
        (folder / "run").mkdir(exist_ok=True)
        self.own = Own(folder / "run", own)
        self.resolver = Resolver(self.config)
        self.dialer = Routed(self.config, parse_rules(self.config.allow_addresses), self.own, self.resolver)
        self.figures = Figures()
        self.open: set[Any] = set()
        self.tunnels = Tunnels(self)
        self.port = 0
        self.relays_to = 0
        """The port of an origin: a call that is let out is answered with a 101 and becomes a relay to it."""
        self._server: Listener | None = None
        self._clients: list[asyncio.StreamWriter] = []

    now_ns = staticmethod(time.time_ns)

    def _append(self, record: Record) -> int:
        self.records.append(record)
        return len(self.records)

    async def __aenter__(self) -> "MiniDoor":
        door = socket.create_server(("127.0.0.1", 0))
        self.port = door.getsockname()[1]
        self._server = self.dialer.wires.listen(door, lambda: _Head(self), 100)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for tunnel in list(self.open):
            tunnel.cut("paused")
        for writer in self._clients:
            writer.close()
        await asyncio.sleep(0.01)

    def look(self) -> None:
        """What the door's clock does when the board has changed."""
        for tunnel in list(self.open):
            if reason := tunnel.exchange.stopped():
                tunnel.cut(reason)

    @property
    def said(self) -> list[Said]:
        return [read_record(record) for record in self.records]

    @property
    def last(self) -> Said:
        return self.said[-1]

    async def until_over(self, calls: int = 1, within_s: float = 5) -> Said:
        """Wait until so many calls have ended; returns the last effect."""
        end = time.monotonic() + within_s
        while True:
            effects = [one for one in self.said if one.kind is Kind.EFFECT]
            if len(effects) >= calls:
                assert len(effects) == calls, effects
                assert not self.open or calls < len(self.records)
                return effects[-1]
            assert time.monotonic() < end, self.said
            await asyncio.sleep(0.005)

    async def connect(self, target: str, first: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        """Ask for a tunnel; returns the streams and the head of the answer."""
        streams, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        self._clients.append(writer)
        writer.write(f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode() + first)
        head = await streams.readuntil(b"\r\n\r\n")
        return streams, writer, head


class _Head(asyncio.Protocol):
    """Reads one CONNECT, decides it, and hands it over."""

    def __init__(self, door: MiniDoor) -> None:
        self._door = door
        self._data = b""
        self._transport: Wire

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, early = self._data.partition(b"\r\n\r\n")
        if not end:
            return
        where = read_target(parse_request(head + end))
        door = self._door
        call = Call(
            time_ns=time.time_ns(), door="door-1", chain=CHAIN, action="http:CONNECT", target=target_of(where.uid),
            trace_id=bytes(15) + b"\1",
        )  # fmt: skip
        exchange = Exchange(door.desk)
        refusal = exchange.begin(call, time.time_ns())
        if refusal is None and door.relays_to:
            self._upgrade(exchange, early)
            return
        if refusal is None:
            refusal = start(door, exchange, where, self._transport, early, Caller(AGENT))
        if refusal is not None:
            self._transport.write(refusal.encode(close=True))
            self._transport.close()


    def _upgrade(self, exchange: Exchange, early: bytes) -> None:
        door = self._door

        def there(_: asyncio.Protocol, fault: Exception | None) -> None:
            assert fault is None
            answer = b"HTTP/1.1 101 Switching Protocols\r\n\r\nfrom below"
            relay(door, exchange, Caller(AGENT), self._transport, origin, 101, answer, early, (100, 1000))

        origin = door.dialer.wires.connect("127.0.0.1", door.relays_to, asyncio.Protocol, there)


class Origin:
    """A TCP server in the test's loop; keeps what it was sent. `speak` has each connection's streams."""

    def __init__(
        self, speak: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] | None = None, tls: Any = None,
        host: str = "127.0.0.1", port: int = 0, buffer: int = 1 << 20,
    ) -> None:  # fmt: skip
        self.connections = 0
        self.heard = bytearray()
        self.port = port
        self.faults: list[BaseException] = []
        self._speak = speak or self._echo
        self._tls = tls
        self._host = host
        self._buffer = buffer
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def _echo(self, streams: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await streams.read(1 << 16):
            self.heard += data
            writer.write(data)
            await writer.drain()
        writer.close()

    async def _serve(self, streams: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._speak(streams, writer)
        except (ConnectionError, asyncio.IncompleteReadError) as fault:
            self.faults.append(fault)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def until_quiet(self) -> None:
        """Wait until every connection has ended."""
        while self._tasks:
            await asyncio.sleep(0.005)

    async def __aenter__(self) -> "Origin":
        self._server = await asyncio.start_server(self._serve, self._host or None, self.port, ssl=self._tls, limit=self._buffer)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()


async def everything(streams: asyncio.StreamReader) -> bytes:
    """What comes until the connection ends, however it ends."""
    got = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := await streams.read(1 << 16):
            got += piece
    return bytes(got)


def linger(writer: asyncio.StreamWriter) -> None:
    """What is closed from here on is closed with a reset."""
    sock = writer.get_extra_info("socket")
    if sock is None:
        return  # it is closed already
    with socket.socket(fileno=socket.dup(sock.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def run(test: Awaitable[None]) -> None:
    """A test that needs a loop, on the loop of the door."""

    async def main() -> None:
        async with asyncio.timeout(60):
            await test

    uvloop.run(main())


__all__ = ["AGENT", "OPEN", "RAW", "MiniDoor", "Origin", "Said", "everything", "linger", "read_record", "run"]
