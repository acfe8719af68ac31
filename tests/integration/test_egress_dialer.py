"""What a dial remembers, how it ends when it takes too long, and that nothing of a tunnel outlives it."""

import asyncio
import gc
import json
import time
from collections import Counter
from collections.abc import Coroutine
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import uvloop

from enforcers.core.addresses import OWN, parse_rules
from enforcers.doors.egress.dial import Dialer, _within
from enforcers.doors.egress.ends import Side
from enforcers.doors.egress.own import LOOK_S, Own
from enforcers.doors.egress.resolve import Resolver
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


def test_a_dial_that_takes_too_long_ends_and_leaves_its_task_as_it_was() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            await _within(0.01, asyncio.sleep(30), loop)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert await _within(5, asyncio.sleep(0, "done"), loop) == "done"
        with pytest.raises(OSError, match="refused"):
            await _within(5, fails(), loop)
        await asyncio.sleep(0.03)  # no timer is left that cancels what comes later

    async def fails() -> None:
        raise OSError("refused")

    run(work())


def test_a_dial_that_is_cancelled_from_outside_is_cancelled_and_not_late() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        for late_s in (30.0, 0.0):  # alone, and together with the end of its time
            task = loop.create_task(_within(late_s, asyncio.sleep(30), loop))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()

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
