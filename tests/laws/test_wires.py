"""Connections beside the loop: what a protocol is told, in which order, and what the other side sees, on both loops."""

import asyncio
import contextlib
import errno
import gc
import os
import resource
import socket
import struct
import time
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ext.wires import Wire, Wires

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop,
}  # fmt: skip
RESET = struct.pack("ii", 1, 0)


class Heard(asyncio.Protocol):
    """Keeps what it is told, in order; `keeps` says whether it stays when the other side has ended."""

    def __init__(self, *, keeps: bool = False, holds: bool = False) -> None:
        self.told: list[Any] = []
        self.data = bytearray()
        self.wire: Wire
        self._keeps = keeps
        self._holds = holds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.wire = transport  # type: ignore[assignment]
        self.told.append("made")
        if self._holds:
            self.wire.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.told.append("end")
        return self._keeps

    def pause_writing(self) -> None:
        self.told.append("full")

    def resume_writing(self) -> None:
        self.told.append("room")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(("lost", exc and type(exc)))


class Site:
    """Connections of a running loop, and one of them with its other side in the hands of the test."""

    def __init__(self) -> None:
        self.faults: list[dict[str, Any]] = []
        self.stack = contextlib.ExitStack()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, said: self.faults.append(said))
        self.wires = Wires(loop)

    async def pair(self, protocol: Heard) -> socket.socket:
        """A connection that was let in; returns the other end, which blocks."""
        server = socket.create_server(("127.0.0.1", 0))
        listener = self.wires.listen(server, lambda: protocol, 5)
        other = self.stack.enter_context(socket.create_connection(server.getsockname()))
        await until(lambda: bool(protocol.told))
        listener.close()
        other.settimeout(10)
        return other

    async def made(self, port: int, protocol: Heard) -> Exception | None:
        """A connection to a port of this machine: the fault where there is none."""
        done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.wires.connect("127.0.0.1", port, lambda: protocol, lambda _, fault: done.set_result(fault))
        return await done


async def until(true: Callable[..., bool], *about: Any, within_s: float = 10) -> None:
    end = time.monotonic() + within_s
    while not true(*about):
        assert time.monotonic() < end
        await asyncio.sleep(0.002)


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[Site], Coroutine[Any, Any, None]]], None]:
    def runs(test: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            site = Site()
            async with asyncio.timeout(30):
                with site.stack:
                    await test(site)
            assert not site.faults
            site.wires.close()
            assert len(site.wires) == 0

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(whole())

    return runs


Runs = Callable[[Callable[[Site], Coroutine[Any, Any, None]]], None]


def test_bytes_go_both_ways_and_an_end_closes_a_connection_once(run: Runs) -> None:
    async def test(site: Site) -> None:
        heard = Heard()
        other = await site.pair(heard)
        assert heard.wire.get_extra_info("peername") == other.getsockname()
        other.sendall(b"up")
        await until(lambda: heard.data == b"up")
        heard.wire.write(b"down")
        assert other.recv(10) == b"down"
        other.sendall(b"last")
        other.close()
        await until(lambda: heard.told == ["made", "end", ("lost", None)])
        assert heard.data == b"uplast"
        heard.wire.write(b"nobody")
        heard.wire.close()
        heard.wire.abort()
        assert (heard.wire.is_closing(), heard.wire.fileno(), heard.wire.get_extra_info("socket")) == (True, -1, None)
        await asyncio.sleep(0.01)
        assert heard.told[-1] == ("lost", None)
        assert len(heard.told) == 3

    run(test)


def test_an_end_that_came_with_the_bytes_before_it_is_told(run: Runs) -> None:
    """News come once: the end must not wait for others that never come."""

    async def test(site: Site) -> None:
        for size in (1, 70_000, 512 << 10, 1_300_000):
            heard = Heard(holds=True)
            other = await site.pair(heard)
            other.setblocking(True)
            sending = asyncio.to_thread(lambda one=other, n=size: (one.sendall(bytes(n)), one.shutdown(socket.SHUT_WR)))
            task = asyncio.ensure_future(sending)
            await asyncio.sleep(0.03)
            assert not heard.data
            heard.wire.resume_reading()
            await task
            await until(lambda one=heard: one.told == ["made", "end", ("lost", None)])  # type: ignore[misc]
            assert len(heard.data) == size
            other.close()

    run(test)


def test_one_side_may_end_and_still_be_written_to(run: Runs) -> None:
    async def test(site: Site) -> None:
        heard = Heard(keeps=True)
        other = await site.pair(heard)
        other.shutdown(socket.SHUT_WR)
        await until(lambda: "end" in heard.told)
        heard.wire.write(b"answer")
        heard.wire.write_eof()
        heard.wire.write_eof()
        with pytest.raises(RuntimeError):
            heard.wire.write(b"more")
        assert [other.recv(10), other.recv(10)] == [b"answer", b""]
        assert heard.told == ["made", "end"]
        heard.wire.close()
        await until(lambda: heard.told[-1] == ("lost", None))

    run(test)


@pytest.mark.parametrize("ends", ["close", "write_eof"])
def test_what_waits_is_written_before_the_end_and_its_writer_is_paused(run: Runs, ends: str) -> None:
    async def test(site: Site) -> None:
        heard = Heard()
        other = await site.pair(heard)
        piece, pieces = os.urandom(100_000), 80
        for _ in range(pieces):
            heard.wire.write(piece)
        assert heard.told == ["made", "full"]
        assert heard.wire.unsent() > heard.wire.get_write_buffer_size() - 1 > 0
        getattr(heard.wire, ends)()

        def read() -> bytes:
            got = bytearray()
            while data := other.recv(1 << 20):
                got += data
            return bytes(got)

        assert await asyncio.to_thread(read) == piece * pieces
        other.close()
        await until(lambda: heard.told[-1] == ("lost", None))
        assert heard.wire.unsent() == 0

    run(test)


def test_a_held_connection_is_not_read_and_loses_nothing(run: Runs) -> None:
    async def test(site: Site) -> None:
        heard = Heard()
        other = await site.pair(heard)
        pieces = [os.urandom(1000 + turn) for turn in range(40)]
        for piece in pieces:
            heard.wire.pause_reading()
            other.sendall(piece)
            before = len(heard.data)
            await asyncio.sleep(0.002)
            assert len(heard.data) == before
            heard.wire.resume_reading()
            await until(heard.data.endswith, piece)
        assert heard.data == b"".join(pieces)

    run(test)


def test_a_break_is_told_as_what_it_is(run: Runs) -> None:
    async def test(site: Site) -> None:
        heard = Heard()
        other = await site.pair(heard)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        other.close()
        await until(lambda: heard.told == ["made", ("lost", ConnectionResetError)])

    run(test)


def test_a_reset_is_seen_as_one_and_drops_what_waits(run: Runs) -> None:
    async def test(site: Site) -> None:
        heard = Heard()
        other = await site.pair(heard)
        for _ in range(100):
            heard.wire.write(bytes(100_000))
        heard.wire.reset()
        assert heard.wire.get_write_buffer_size() == 0

        def read() -> None:
            while other.recv(1 << 20):
                pass

        with pytest.raises(ConnectionResetError):
            read()
        await until(lambda: heard.told[-1] == ("lost", None))

    run(test)


def test_a_connection_is_made_or_its_fault_is_told(run: Runs) -> None:
    async def test(site: Site) -> None:
        server = site.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = server.getsockname()[1]
        heard = Heard()
        assert await site.made(port, heard) is None
        assert heard.told == ["made"]
        assert heard.wire.get_extra_info("peername") == ("127.0.0.1", port)
        there = site.stack.enter_context(server.accept()[0])
        there.sendall(b"first")
        await until(lambda: heard.data == b"first")
        server.close()
        assert isinstance(await site.made(port, Heard()), ConnectionRefusedError)
        with pytest.raises(ValueError, match="no address"):
            site.wires.connect("localhost", 1, Heard, lambda *_: None)
        with pytest.raises(OSError, match="."):
            site.wires.connect("255.255.255.255", 1, Heard, lambda *_: None)
        assert len(site.wires) == 1

    run(test)


def test_nobody_is_told_of_a_connection_that_was_given_up(run: Runs) -> None:
    async def test(site: Site) -> None:
        server = socket.create_server(("127.0.0.1", 0))
        told: list[Any] = []
        wire = site.wires.connect("127.0.0.1", server.getsockname()[1], Heard, lambda *said: told.append(said))
        wire.give_up()
        await asyncio.sleep(0.02)
        assert not told
        assert len(site.wires) == 0
        server.close()

    run(test)


def test_a_protocol_that_cannot_be_made_is_told_as_a_fault(run: Runs) -> None:
    async def test(site: Site) -> None:
        server = socket.create_server(("127.0.0.1", 0))
        done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

        def factory() -> Heard:
            raise LookupError

        site.wires.connect("127.0.0.1", server.getsockname()[1], factory, lambda _, fault: done.set_result(fault))
        assert isinstance(await done, LookupError)
        assert len(site.wires) == 0
        server.close()

    run(test)


def test_a_protocol_that_fails_ends_its_own_connection_and_no_other(run: Runs) -> None:
    class Fails(Heard):
        def data_received(self, data: bytes) -> None:
            raise LookupError

    async def test(site: Site) -> None:
        good, bad = Heard(), Fails()
        one, other = await site.pair(good), await site.pair(bad)
        other.sendall(b"x")
        one.sendall(b"y")
        await until(lambda: bad.told == ["made", ("lost", LookupError)])
        await until(lambda: good.data == b"y")
        assert other.recv(1) == b""
        assert [type(said["exception"]) for said in site.faults] == [LookupError]
        site.faults.clear()

    run(test)


def test_a_protocol_may_close_others_while_all_have_news(run: Runs) -> None:
    """Their news are there already, and their descriptors may be another's by then."""

    async def test(site: Site) -> None:
        all_of_them: list[Heard] = []

        class Closes(Heard):
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                for one in all_of_them:
                    if one is not self:
                        one.wire.abort()

        ends = []
        for _ in range(30):
            all_of_them.append(Closes())
            ends.append(await site.pair(all_of_them[-1]))
        for end in ends:
            end.sendall(b"x")
        await until(lambda: sum(one.told[-1] == ("lost", None) for one in all_of_them) == 29)
        assert sum(bool(one.data) for one in all_of_them) == 1

    run(test)


def test_a_connection_leaves_nothing_behind(run: Runs) -> None:
    async def test(site: Site) -> None:
        async def one() -> "weakref.ref[Heard]":
            heard = Heard()
            other = await site.pair(heard)
            other.close()
            await until(lambda: heard.told[-1] == ("lost", None))
            del heard.wire
            return weakref.ref(heard)

        gc.collect()
        gc.disable()
        try:
            gone = await one()
            await asyncio.sleep(0.01)
            assert gone() is None
        finally:
            gc.enable()

    run(test)


def test_a_socket_on_disk_has_a_peer_without_a_name(run: Runs, tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(tmp_path / "s"))
        heard = Heard()
        site.wires.listen(server, lambda: heard, 5)
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(tmp_path / "s"))
            other.sendall(b"x")
            await until(lambda: heard.data == b"x")
            assert heard.wire.get_extra_info("peername") == ""
            for _ in range(30):
                heard.wire.write(bytes(50_000))
            got = 0
            while got < 1_500_000:
                got += len(await asyncio.to_thread(other.recv, 1 << 20))

    run(test)


def test_without_descriptors_nobody_is_let_in_until_there_are_some(run: Runs) -> None:
    async def test(site: Site) -> None:
        server = socket.create_server(("127.0.0.1", 0))
        made: list[Heard] = []

        def factory() -> Heard:
            made.append(Heard())
            return made[-1]

        site.wires.listen(server, factory, 5)
        other = socket.socket()
        kept = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (other.fileno() + 1, kept[1]))
        try:
            other.connect(server.getsockname())
            await until(lambda: bool(site.faults))
            assert os.strerror(errno.EMFILE).lower() in site.faults[0]["message"]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, kept)
        assert not made
        await until(lambda: bool(made))
        assert len(site.faults) == 1
        site.faults.clear()
        other.close()

    run(test)
