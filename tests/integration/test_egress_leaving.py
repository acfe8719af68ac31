"""How programs leave a tunnel: what they had ended before a reset is an end, and no fault."""

import asyncio
import socket
from pathlib import Path

import pytest

from schemas.records import Outcome
from tests.support.dns import NameServer, say
from tests.support.hellos import real
from tests.support.tunneling import MiniDoor, Origin, run

HOST = "origin.test"
GOOD = real(HOST)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset: what the kernel of a closed program answers to whatever still comes."""
    with socket.socket(fileno=socket.dup(writer.get_extra_info("socket").fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


@pytest.mark.parametrize("who", ["client", "origin"])
def test_a_reset_behind_an_end_is_no_error(tmp_path: Path, who: str) -> None:
    async def speak(streams: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await streams.readexactly(len(GOOD))
        writer.write(b"answer")
        if who == "origin":
            writer.write_eof()
            await asyncio.sleep(0.1)
            reset(writer)
        else:
            assert await streams.read() == b""
            writer.write(b"bye")  # as a close_notify does
            await streams.read()

    async def test() -> None:
        async with Origin(speak) as origin, MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
            door.dialer.tls_port = origin.port
            streams, writer, _ = await door.connect(f"{HOST}:443", GOOD)
            assert await streams.readexactly(6) == b"answer"
            if who == "client":
                writer.write_eof()
                await asyncio.sleep(0.1)
                reset(writer)
            else:
                assert await streams.read() == b"", "the end arrives, and no reset before it"
                await asyncio.sleep(0.2)
                writer.write(b"bye")
                writer.close()
            said = await door.until_over()
            assert (said.outcome, said.error, said.bytes_in) == (Outcome.OK, "", 9 if who == "client" else 6)
            writer.close()

    with NameServer() as names:
        names[HOST] = say("127.0.0.1")
        run(test())
