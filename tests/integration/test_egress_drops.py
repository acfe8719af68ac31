"""Clients that leave in mid-body, again and again, on the door that others use: what is others' arrives whole."""

import asyncio
import hashlib
import random
import socket
import struct
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.support.egress import DoorProcess, EgressSite
from tests.support.rawhttp import RawOrigin, Reader

SIZE = 300_000
PATIENT, LEAVING, EACH = 6, 6, 15

LARGE = bytes(16 << 20)
"""More than all buffers on its way hold, so that a client that leaves is seen to leave."""


def body_of(name: str) -> bytes:
    """A body that no other call has."""
    return hashlib.shake_128(name.encode()).digest(SIZE)


class Digests(RawOrigin):
    """Answers a body with its digest, and a request for a body with that body; notes what was cut short."""

    def __init__(self) -> None:
        self.whole: dict[str, str] = {}
        self.short: set[str] = set()
        self._guard = threading.Lock()
        super().__init__(self._serve)

    def _serve(self, _: RawOrigin, sock: socket.socket) -> None:
        reader = Reader(sock)
        while True:
            line, fields = reader.head()
            name = line.split()[1]
            size = next((int(value) for key, value in fields if key.lower() == "content-length"), 0)
            chunked = any(key.lower() == "transfer-encoding" for key, _ in fields)
            try:
                body = self._chunks(reader) if chunked else reader.exactly(size)
            except (EOFError, OSError):
                with self._guard:
                    self.short.add(name)
                return
            if line.startswith("GET"):
                answer = LARGE if name.startswith("/leaves") else body_of(name)
            else:
                answer = hashlib.sha256(body).hexdigest().encode()
                with self._guard:
                    self.whole[name] = answer.decode()
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)

    def _chunks(self, reader: Reader) -> bytes:
        found = b""
        while size := int(reader.until(b"\r\n"), 16):
            found += reader.exactly(size + 2)[:-2]
        reader.until(b"\r\n")
        return found


@pytest.mark.parametrize("how", ["length", "chunked", "answer"])
def test_who_leaves_in_mid_body_harms_nobody_elses(tmp_path: Path, how: str) -> None:
    """All are one agent's, so that they share the connections to the origin."""
    with EgressSite(tmp_path / "home", egress={"upstreams_per_agent_host": 4}) as site, Digests() as origin:
        door = site.start()
        got = asyncio.run(_story(site, door, origin, how))
        assert got == Counter({True: PATIENT * EACH}), "each of the others has its own, whole"
        calls = {said["call"]: said["path"] for said in site.records() if said["kind"] == "decision"}
        left = len(calls) - PATIENT * EACH  # a reset may take a head away before the door has read it
        assert LEAVING * EACH // 2 < left <= LEAVING * EACH
        for path in calls.values():
            if path.startswith("/leaves"):
                assert path not in origin.whole, "half a body was taken for a whole one"
        ended = Counter((calls[call][:2], site.effect_of(call)["outcome"]) for call in calls)
        assert ended == {("/p", "ok"): PATIENT * EACH, ("/l", "error"): left}
        assert door.process.poll() is None
        assert door.log() == ""


async def _story(site: EgressSite, door: DoorProcess, origin: Digests, how: str) -> Counter[bool]:
    authority, rng = origin.authority, random.Random(how)

    def head(path: str) -> bytes:
        if how == "answer":
            return site.get(authority, path)
        framing = "Transfer-Encoding: chunked" if how == "chunked" else f"Content-Length: {SIZE}"
        return site.get(authority, path, framing, method="POST")

    def framed(body: bytes) -> bytes:
        if how != "chunked":
            return body
        parts = [body[at : at + 7_001] for at in range(0, len(body), 7_001)]
        return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    async def patient(number: int) -> list[bool]:
        streams, writer = await asyncio.open_connection("127.0.0.1", door.port)
        found = []
        for turn in range(EACH):
            path = f"/patient-{number}-{turn}"
            body = body_of(path)
            writer.write(head(path))
            if how != "answer":
                data = framed(body)
                for at in range(0, len(data), 50_000):
                    writer.write(data[at : at + 50_000])
                    await asyncio.sleep(0)
            answer = await streams.readuntil(b"\r\n\r\n")
            size = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            data = await streams.readexactly(size)
            wanted = body if how == "answer" else hashlib.sha256(body).hexdigest().encode()
            found.append(answer.startswith(b"HTTP/1.1 200 ") and data == wanted)
        writer.close()
        return found

    async def leaving(number: int) -> None:
        for turn in range(EACH):
            streams, writer = await asyncio.open_connection("127.0.0.1", door.port)
            path = f"/leaves-{number}-{turn}"
            data = head(path) + (b"" if how == "answer" else framed(body_of(path))[: rng.randrange(1, SIZE - 10_000)])
            writer.write(data)
            await writer.drain()
            if how == "answer":
                await streams.readexactly(rng.randrange(1, 200_000))
            else:
                await asyncio.sleep(rng.random() * 0.02)
            if rng.random() < 0.5:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()

    async with asyncio.timeout(60):
        patients = asyncio.gather(*(patient(number) for number in range(PATIENT)))
        await asyncio.gather(*(leaving(number) for number in range(LEAVING)))
        return Counter(one for found in await patients for one in found)
