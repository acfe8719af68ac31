"""How tunnels end: each direction by itself, by a reset, by a limit, by a revocation, and each with its record."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.records import Kind, Outcome
from tests.support.boards import lift, revoke
from tests.support.dns import NameServer, say
from tests.support.hellos import real
from tests.support.tunneling import MiniDoor, Origin, everything, linger, run

HOST = "origin.test"
GOOD = real(HOST)


@pytest.fixture
def names() -> Iterator[NameServer]:
    with NameServer() as server:
        server[HOST] = say("127.0.0.1")
        yield server


def test_each_direction_ends_by_itself(tmp_path: Path, names: NameServer) -> None:
    async def last_word(streams: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = await streams.read()  # until the client has ended
        writer.write(hashlib.sha256(heard).digest())

    async def first_ends(streams: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await streams.readexactly(len(GOOD))
        writer.write_eof()
        assert await streams.read() == b"more"

    async def test() -> None:
        async with Origin(last_word) as origin, MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
            door.dialer.tls_port = origin.port
            streams, writer, _ = await door.connect(f"{HOST}:443", GOOD)
            writer.write(b"x" * 300_000)
            writer.write_eof()
            assert await streams.read() == hashlib.sha256(GOOD + b"x" * 300_000).digest()
            assert (await door.until_over()).outcome is Outcome.OK
            async with Origin(first_ends) as other:
                door.dialer.tls_port = other.port
                streams, writer, _ = await door.connect(f"{HOST}:443", GOOD)
                assert await streams.read() == b""
                writer.write(b"more")
                writer.write_eof()
                said = await door.until_over(2)
                assert (said.outcome, said.bytes_out, said.bytes_in) == (Outcome.OK, len(GOOD) + 4, 0)
                assert not other.faults
            writer.close()

    run(test())


@pytest.mark.parametrize("who", ["origin", "client"])
def test_a_reset_of_one_end_resets_the_other(tmp_path: Path, names: NameServer, who: str) -> None:
    reset = asyncio.Event()

    async def speak(streams: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await streams.readexactly(len(GOOD))
        writer.write(b"begun")
        if who == "origin":
            await reset.wait()
            linger(writer)
            writer.transport.abort()
        else:
            await streams.read()

    async def test() -> None:
        async with Origin(speak) as origin, MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
            door.dialer.tls_port = origin.port
            streams, writer, _ = await door.connect(f"{HOST}:443", GOOD)
            assert await streams.readexactly(5) == b"begun"
            reset.set()
            if who == "origin":
                with pytest.raises(ConnectionResetError):
                    await streams.read()
            else:
                linger(writer)
                writer.transport.abort()
            said = await door.until_over()
            assert (said.outcome, said.bytes_out, said.bytes_in) == (Outcome.ERROR, len(GOOD), 5)
            assert said.error.startswith(f"{who}: ")
            await asyncio.sleep(0.05)
            assert bool(origin.faults) == (who == "client")
            writer.close()

    run(test())


def test_a_client_that_leaves_early_leaves_nothing_open(tmp_path: Path, names: NameServer) -> None:
    async def test() -> None:
        async with Origin() as origin, MiniDoor(tmp_path, dns_servers=(names.address,), dns_ms=300) as door:
            door.dialer.tls_port = origin.port
            names["mute.test"] = say(silent=("A", "AAAA"))
            for number, (host, first) in enumerate([(HOST, b""), (HOST, GOOD[:50]), ("mute.test", real("mute.test"))]):
                _, writer, _ = await door.connect(f"{host}:443", first)
                await asyncio.sleep(0.02)
                writer.close()
                said = await door.until_over(number + 1)
                assert said.outcome is not Outcome.OK
                assert (said.bytes_out, said.bytes_in) == (0, 0)
            assert not door.open
            assert len(door.tunnels) == 0
            assert origin.connections == 0

    run(test())


def test_a_slow_reader_stops_its_sender(tmp_path: Path, names: NameServer) -> None:
    size, sent = 64 << 20, 0

    async def pour(streams: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await streams.readexactly(len(GOOD))
        piece = bytes(range(256)) * 256
        while sent < size:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)

    async def test() -> None:
        async with Origin(pour) as origin, MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
            door.dialer.tls_port = origin.port
            streams, writer, _ = await door.connect(f"{HOST}:443", GOOD)
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.2)
            assert 0 < sent < 32 << 20  # what two kernels' buffers and ours hold
            (tunnel,) = door.open
            waits = tunnel._client.get_write_buffer_size()
            assert 0 < waits <= 1 << 20, waits
            digest, got = hashlib.sha256(), 0
            while piece := await streams.read(1 << 20):
                digest.update(piece)
                got += len(piece)
                if got == size:
                    writer.write_eof()
            assert got == size
            assert digest.digest() == hashlib.sha256(bytes(range(256)) * (size // 256)).digest()
            said = await door.until_over()
            assert (said.outcome, said.bytes_in) == (Outcome.OK, size)
            writer.close()

    run(test())


def test_a_tunnel_in_which_nothing_moves_is_ended(tmp_path: Path, names: NameServer) -> None:
    async def test() -> None:
        async with Origin() as origin, MiniDoor(tmp_path, dns_servers=(names.address,), tunnel_idle_ms=1_500) as door:
            door.dialer.tls_port = origin.port
            streams, writer, _ = await door.connect(f"{HOST}:443", GOOD)
            got = await streams.readexactly(len(GOOD))
            for _ in range(4):  # longer than the limit, but never still for so long
                await asyncio.sleep(0.5)
                writer.write(b".")
                got += await streams.readexactly(1)
            assert door.open
            with pytest.raises(ConnectionResetError):
                await streams.read()
            said = await door.until_over()
            assert (said.outcome, said.error) == (Outcome.ERROR, "nothing moved for 1500 ms")
            assert (door.figures.reached["tunnel_idle_ms"], door.figures.failed["idle"]) == (1, 1)
            assert (said.bytes_out, said.bytes_in) == (len(got), len(got))
            writer.close()

    run(test())


def test_a_tunnel_says_how_far_it_is_while_it_lives(tmp_path: Path, names: NameServer) -> None:
    async def test() -> None:
        async with Origin() as origin, MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
            door.dialer.tls_port = origin.port
            streams, writer, _ = await door.connect(f"{HOST}:443", GOOD)
            await streams.readexactly(len(GOOD))
            data = b"x" * (2 << 20)
            writer.write(data)
            await streams.readexactly(len(data))
            await asyncio.sleep(1.3)
            writer.write(b"a little more")
            await asyncio.sleep(1.3)
            progress = [one for one in door.said if one.kind is Kind.PROGRESS]
            moved = len(data) + len(GOOD)
            assert [(one.seq, one.bytes_out, one.bytes_in) for one in progress] == [(1, moved, moved)]
            assert progress[0].outcome is Outcome.OPEN
            writer.close()
            await door.until_over()

    run(test())


def test_an_agent_has_so_many_tunnels_and_no_more(tmp_path: Path, names: NameServer) -> None:
    async def test() -> None:
        async with Origin() as origin, MiniDoor(tmp_path, dns_servers=(names.address,), tunnels_per_agent=2) as door:
            door.dialer.tls_port = origin.port
            open_ones = [await door.connect(f"{HOST}:443", GOOD) for _ in range(2)]
            streams, writer, head = await door.connect(f"{HOST}:443", GOOD)
            assert head.startswith(b"HTTP/1.1 503 ")
            assert json.loads(await streams.read())["reason"] == "overloaded"
            assert (door.last.reason, door.last.denied) == ("overloaded", True)
            assert door.figures.reached["tunnels_per_agent"] == 1
            writer.close()
            open_ones.pop()[1].close()
            await door.until_over(2)
            _, writer, head = await door.connect(f"{HOST}:443", GOOD)
            assert head.startswith(b"HTTP/1.1 200 ")
            for each in (writer, open_ones[0][1]):
                each.close()
            await door.until_over(4)

    run(test())


def test_a_door_that_stops_ends_its_tunnels_and_says_so(tmp_path: Path, names: NameServer) -> None:
    names["mute.test"] = say(silent=("A", "AAAA"))

    async def test() -> None:
        async with Origin() as origin, MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
            door.dialer.tls_port = origin.port
            streams, _, _ = await door.connect(f"{HOST}:443", GOOD)
            await streams.readexactly(len(GOOD))
            for target, first in ((f"{HOST}:443", b""), ("mute.test:443", real("mute.test"))):
                await door.connect(target, first)
            await asyncio.sleep(0.02)
            for tunnel in list(door.open):
                tunnel.stop()
            with pytest.raises(ConnectionResetError):
                await streams.read()
            await door.until_over(3)
            assert not door.open
            effects = [one for one in door.said if one.kind is Kind.EFFECT]
            assert {(one.outcome, one.error, one.denied) for one in effects} == {(Outcome.ERROR, "the door stopped", False)}
            assert sorted(one.bytes_out for one in effects) == [0, 0, len(GOOD)]

    run(test())


def test_what_a_client_has_sent_whole_arrives_though_it_is_gone(tmp_path: Path, names: NameServer) -> None:
    """It ends, closes, and answers what still comes for it with a reset; the origin reads slowly, and gets everything."""
    speak, slow, sent, heard = asyncio.Event(), asyncio.Event(), 0, 0
    piece = bytes(range(256)) * 64

    async def read_late(streams: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        await streams.readexactly(len(GOOD))
        await speak.wait()
        for _ in range(2):
            writer.write(b"to nobody")
            await asyncio.sleep(0.02)
        await slow.wait()
        while got := await streams.read(1 << 16):
            heard += len(got)

    async def test() -> None:
        nonlocal sent
        async with Origin(read_late, buffer=4_096) as origin, MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
            door.dialer.tls_port = origin.port
            _, writer, _ = await door.connect(f"{HOST}:443", GOOD)
            while not origin.connections:
                await asyncio.sleep(0.005)
            (tunnel,) = door.open
            while not tunnel._near.other.transport.get_write_buffer_size():
                writer.write(piece)
                sent += len(piece)
                await asyncio.sleep(0.001)
            writer.write_eof()
            while not tunnel._near.ended:
                await asyncio.sleep(0.005)
            linger(writer)
            writer.transport.abort()
            near = tunnel._near
            speak.set()
            while not near.gone:
                await asyncio.sleep(0.005)
            assert door.open, "what waits is not written yet"
            slow.set()
            said = await door.until_over()
            assert (said.outcome, said.bytes_out) == (Outcome.OK, len(GOOD) + sent)
            await origin.until_quiet()
            assert heard == sent

    run(test())


def test_a_tunnel_is_cut_while_it_still_writes_what_came_before_its_end(tmp_path: Path, names: NameServer) -> None:
    async def pour(streams: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await streams.readexactly(len(GOOD))
        writer.write(bytes(8 << 20))

    async def test() -> None:
        async with Origin(pour) as origin, MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
            door.dialer.tls_port = origin.port
            streams, writer, _ = await door.connect(f"{HOST}:443", GOOD)
            writer.transport.pause_reading()
            writer.write_eof()
            await asyncio.sleep(0.3)
            (tunnel,) = door.open
            assert tunnel._client.get_write_buffer_size() > 0
            revoke(door.board, "agent:researcher")
            door.look()
            said = await door.until_over()
            assert (said.reason, said.denied) == ("revoked", True)
            writer.transport.resume_reading()
            assert len(await everything(streams)) < 8 << 20

    run(test())


# -- revocation ------------------------------------------------------------------------------------------------------

TEXTS = ["agent:researcher", "domain:origin.test", "principal:User::\"alice\""]


def test_an_open_tunnel_that_is_revoked_is_cut_in_both_directions(tmp_path: Path, names: NameServer) -> None:
    async def test() -> None:
        async with Origin() as origin, MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
            door.dialer.tls_port = origin.port
            streams, writer, _ = await door.connect(f"{HOST}:443", GOOD)
            await streams.readexactly(len(GOOD))
            revoke(door.board, "agent:researcher")
            door.look()
            with pytest.raises(ConnectionResetError):
                await streams.read()
            said = await door.until_over()
            assert (said.reason, said.denied, said.outcome) == ("revoked", True, Outcome.REFUSED)
            assert (said.bytes_out, said.bytes_in, said.address) == (len(GOOD), len(GOOD), f"127.0.0.1:{origin.port}")
            await asyncio.sleep(0.05)
            assert len(origin.faults) == 1
            assert not door.open
            writer.close()

    run(test())


@pytest.mark.parametrize("when", ["before its hello", "while its name is looked up", "between its dial and its first byte"])
def test_a_tunnel_that_is_revoked_before_its_first_byte_sends_none(tmp_path: Path, names: NameServer, when: str) -> None:
    names["mute.test"] = say(silent=("A", "AAAA"))
    host = "mute.test" if "looked up" in when else HOST

    async def test() -> None:
        async with Origin() as origin, MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
            door.dialer.tls_port = origin.port
            streams, writer, _ = await door.connect(f"{host}:443")
            if "before" not in when:
                writer.write(real(host))
                while "dial" in when and not origin.connections:
                    revoke(door.board, "agent:researcher")
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.02)
            if "dial" not in when:
                revoke(door.board, "agent:researcher")
                door.look()
            await everything(streams)
            said = await door.until_over()
            assert (said.reason, said.denied, said.error) == ("revoked", True, "revoked while waiting")
            await asyncio.sleep(0.05)
            assert origin.heard == b""
            assert not door.open
            writer.close()
            lift(door.board, "agent:researcher")

    run(test())
