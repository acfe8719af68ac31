"""Many tunnels at once, each used and left in another way: each has exactly one end in the record, and nothing stays behind."""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from pathlib import Path

import pytest

from schemas.records import Kind, Outcome
from tests.support.boards import lift, revoke
from tests.support.dns import NameServer, say
from tests.support.hellos import real
from tests.support.tunneling import RAW, MiniDoor, Origin, everything, linger, run

HOSTS = ("a.test", "b.test", "mute.test", "nowhere.test", "inside.test")
TUNNELS = 400


async def moody(streams: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An origin that does what the second byte after the hello says."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, RuntimeError):
        how = (await streams.readexactly(1))[0] % 6
        if how == 0:
            writer.write(b"x" * 200_000)
            await writer.drain()
        elif how == 1:
            linger(writer)
            writer.transport.abort()
        elif how == 2:
            writer.write_eof()
            await everything(streams)
        else:
            while data := await streams.read(1 << 16):
                writer.write(data)
                await writer.drain()


async def use(door: MiniDoor, rng: random.Random, port: int) -> str:
    """One tunnel; returns what was done with it."""
    host = rng.choice(HOSTS)
    target = rng.choice((f"{host}:443", f"{host}:443", f"{host}:{port}", f"127.0.0.1:{port}"))
    try:
        streams, writer, head = await door.connect(target, rng.choice((b"", real(host), b"\x16\3\1")))
    except (asyncio.IncompleteReadError, ConnectionError):
        return "cut before its answer"
    if b" 200 " not in head:
        return head.split()[1].decode()
    what = rng.choice(("talk", "leave", "reset", "end", "wait"))
    with contextlib.suppress(ConnectionError, TimeoutError, RuntimeError):  # uvloop's word for a connection that is gone
        async with asyncio.timeout(3):
            for _ in range(rng.randrange(4)):
                writer.write(bytes([rng.randrange(256)]) * rng.choice((1, 100, 100_000)))
                await asyncio.sleep(rng.random() * 0.02)
            if what == "talk":
                await streams.read(1 << 16)
            elif what == "reset":
                linger(writer)
                writer.transport.abort()
            elif what == "end":
                writer.write_eof()
                await everything(streams)
            elif what == "wait":
                await asyncio.sleep(rng.random() * 0.3)
    writer.close()
    return what


@pytest.mark.parametrize("seed", [1, 2])
def test_every_tunnel_has_exactly_one_end_however_it_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    rng = random.Random(seed)

    async def test() -> None:
        config = {"header_ms": 100, "dns_ms": 200, "tunnel_idle_ms": 2_000, "tunnels_per_agent": 300}
        async with Origin(moody) as origin, MiniDoor(tmp_path, RAW, dns_servers=(names.address,), **config) as door:
            door.dialer.tls_port = origin.port
            tasks = []
            for number in range(TUNNELS):
                tasks.append(asyncio.ensure_future(use(door, rng, origin.port)))
                if number % 40 == 20:
                    revoke(door.board, "destination:a.test", epoch=2 * number)
                    door.look()
                    lift(door.board, "destination:a.test", epoch=2 * number + 1)
                await asyncio.sleep(rng.random() * 0.004)
            done = Counter(await asyncio.gather(*tasks))
            assert len(done) > 5, done
            end = asyncio.get_running_loop().time() + 20
            while door.open and asyncio.get_running_loop().time() < end:
                await asyncio.sleep(0.05)
            assert not door.open
            assert len(door.tunnels) == 0
            assert not door.tunnels._early
            assert not any(door.tunnels._rounds)
            said = door.said
            allowed = [seq for seq, one in enumerate(said, 1) if one.kind is Kind.DECISION and not one.denied]
            ends = Counter(one.seq for one in said if one.kind is Kind.EFFECT)
            assert ends == Counter(allowed)
            outcomes = Counter(one.outcome for one in said if one.kind is Kind.EFFECT)
            assert set(outcomes) == {Outcome.OK, Outcome.ERROR, Outcome.REFUSED}, outcomes
            assert {one.reason for one in said if one.kind is Kind.EFFECT} >= {"", "address", "revoked"}

    with NameServer() as names:
        for host in ("a.test", "b.test"):
            names[host] = say("127.0.0.1")
        names["mute.test"] = say(silent=("A", "AAAA"))
        names["inside.test"] = say("10.0.0.1")
        run(test())
    failed = [(record.getMessage(), record.exc_info) for record in caplog.records if record.levelno >= logging.ERROR]
    assert not failed, "a callback of ours has failed"
