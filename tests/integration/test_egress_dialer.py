"""What a dial remembers, how it ends when it takes too long, and that nothing of a tunnel outlives it."""

import asyncio
import contextlib
import gc
import json
import socket
import time
from collections import Counter
from collections.abc import Coroutine
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import uvloop

from enforcers.core.addresses import OWN, parse_rules, read_address
from enforcers.doors.egress.dial import Dialer, Refused
from enforcers.doors.egress.ends import Side
from enforcers.doors.egress.own import LOOK_S, Own
from enforcers.doors.egress.resolve import Resolver, Unreachable
from enforcers.doors.egress.tunnel import Tunnel
from schemas.config import Egress
from tests.support.tunneling import RAW, MiniDoor


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def listens(folder: Path, address: str) -> None:
    (folder / "part.json").write_text(json.dumps({"address": address}))


def test_what_was_judged_is_judged_anew_when_a_part_of_wardline_listens_there(tmp_path: Path) -> None:
    own = Own(tmp_path, ())
    dialer = Dialer(Egress(), parse_rules(("10.0.0.0/8",)), own, Resolver(Egress()))
    one, other = ip_address("10.0.0.1"), ip_address("10.0.0.2")
    assert [dialer.judge(one, 80), dialer.judge(one, 80), dialer.judge(one, 81)] == ["", "", ""]
    assert dialer.judge(ip_address("127.0.0.1"), 80) == "loopback"
    time.sleep(0.02)  # two changes within one tick of the file system's clock look like one
    listens(tmp_path, "10.0.0.1:80")
    time.sleep(LOOK_S)
    assert [dialer.judge(one, 80), dialer.judge(one, 81), dialer.judge(other, 80)] == [OWN, "", ""]
    own.current = own.refresh()
    assert dialer.judge(one, 80) == OWN


def test_a_port_of_a_wildcard_listener_is_judged_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local: set[Any] = set()
    monkeypatch.setattr("enforcers.doors.egress.own.is_local", lambda address: address in local)
    listens(tmp_path, "0.0.0.0:80")
    dialer = Dialer(Egress(), parse_rules(("10.0.0.0/8",)), Own(tmp_path, ()), Resolver(Egress()))
    one = ip_address("10.0.0.1")
    assert dialer.judge(one, 80) == ""
    local.add(one)
    assert dialer.judge(one, 80) == OWN


class Slow(asyncio.Protocol):
    """A connection, and whether it is there, and gone."""

    def __init__(self) -> None:
        self.made = self.lost = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost += 1


def full(stack: contextlib.ExitStack) -> int:
    """The port of a listener that lets nobody in any more: its queue is full."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for _ in range(4):
        caller = stack.enter_context(socket.socket())
        caller.setblocking(False)
        caller.connect_ex(listener.getsockname())
    return int(listener.getsockname()[1])


def dialer_of(folder: Path, **limits: int) -> Dialer:
    config = Egress(**{"allow_addresses": ("127.0.0.0/8",), **limits})  # type: ignore[arg-type]
    return Dialer(config, parse_rules(config.allow_addresses), Own(folder, ()), Resolver(config))


def test_a_dial_that_takes_too_long_ends_as_one_and_leaves_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        dialer, made = dialer_of(tmp_path, dial_ms=300), Slow()
        with contextlib.ExitStack() as stack:
            port, begun = full(stack), time.monotonic()
            with pytest.raises(Unreachable, match="127.0.0.1:[0-9]+ did not answer within") as late:
                await dialer.dial("127.0.0.1", port, read_address("127.0.0.1"), lambda: made)
            assert (late.value.code, late.value.limit) == ("timeout", "dial_ms")
            assert 0.2 < time.monotonic() - begun < 3
            await asyncio.sleep(0.05)
        assert made.made == 0

    run(work())


def test_a_dial_that_is_given_up_tells_nobody_and_closes_what_it_had(tmp_path: Path) -> None:
    async def work() -> None:
        dialer, told = dialer_of(tmp_path, dial_ms=200), list[Any]()
        with contextlib.ExitStack() as stack:
            port = full(stack)
            dial = dialer.start("127.0.0.1", port, read_address("127.0.0.1"), Slow, lambda *said: told.append(said))
            dial.cancel()
            dial.cancel()
            task = asyncio.get_running_loop().create_task(dialer.dial("127.0.0.1", port, read_address("127.0.0.1"), Slow))
            for name in ("localhost", "other.invalid"):
                dialer.start(name, port, None, Slow, lambda *said: told.append(said)).cancel()
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.5)  # no timer is left that ends what comes later
        assert told == []

    run(work())


def test_a_dial_goes_from_one_address_to_the_next_and_says_the_last_fault(tmp_path: Path) -> None:
    async def work() -> None:
        server = await asyncio.get_running_loop().create_server(Slow, "127.0.0.2", 0)
        port = server.sockets[0].getsockname()[1]
        dialer = dialer_of(tmp_path)
        for name, second in (("both.test", "127.0.0.2"), ("none.test", "127.0.0.3"), ("mixed.test", "10.0.0.1")):
            dialer.resolver._known[name] = time.monotonic() + 60, [ip_address("127.0.0.1"), ip_address(second)]
        transport, protocol, address = await dialer.dial("both.test", port, None, Slow)
        assert (address, protocol.made, transport.get_extra_info("peername")) == (f"127.0.0.2:{port}", 1, ("127.0.0.2", port))
        transport.abort()
        with pytest.raises(Unreachable, match=f"127.0.0.3:{port}: connection refused"):
            await dialer.dial("none.test", port, None, Slow)
        with pytest.raises(Refused, match=f"private: 10.0.0.1:{port}"):
            await dialer.dial("mixed.test", port, None, Slow)
        server.close()

    run(work())


def test_nothing_of_a_tunnel_waits_for_the_garbage_collector(tmp_path: Path) -> None:
    async def work() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, MiniDoor(tmp_path, RAW) as door:
            for clean in (True, False):
                streams, writer, head = await door.connect(f"localhost:{port}", b"hello")
                assert head.startswith(b"HTTP/1.1 200")
                assert await streams.readexactly(5) == b"HELLO"
                assert alive() == {"Tunnel": 1, "Side": 2}
                if clean:
                    writer.write_eof()
                    assert await streams.read() == b""
                    writer.close()
                else:
                    writer.transport.abort()
                await door.until_over(2 - clean)
                await asyncio.sleep(0.05)
                assert alive() == {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data.upper())
        writer.close()

    def alive() -> Counter[str]:
        return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, (Tunnel, Side)))

    gc.collect()
    gc.disable()
    try:
        run(work())
    finally:
        gc.enable()
