"""Tunnels: what is let through is not changed, what is not TLS to the named host is asked about, each end has its record."""

import asyncio
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.records import Outcome
from tests.support.certificates import Authority
from tests.support.dns import NameServer, say
from tests.support.hellos import body, ech, made, message, real, records, sni
from tests.support.tunneling import RAW, MiniDoor, Origin, everything, run

HOST = "origin.test"
ALERT_DENIED = bytes.fromhex("15030300020231")
ALERT_FAILED = bytes.fromhex("15030300020250")


@pytest.fixture
def names() -> Iterator[NameServer]:
    with NameServer() as server:
        server[HOST] = say("127.0.0.1")
        yield server


def test_tls_to_the_host_that_was_named_passes_unchanged(tmp_path: Path, names: NameServer) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("origin", HOST)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=str(authority.file))
    data = bytes(range(256)) * 4096

    async def test() -> None:
        async with Origin(tls=server) as origin, MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
            door.dialer.tls_port = origin.port
            streams, writer, head = await door.connect(f"{HOST}:443")
            assert head == b"HTTP/1.1 200 Connection established\r\n\r\n"
            await writer.start_tls(client, server_hostname=HOST)
            asyncio.get_running_loop().call_soon(writer.write, data)
            assert await streams.readexactly(len(data)) == data
            assert bytes(origin.heard) == data
            writer.close()
            said = await door.until_over()
            assert (said.outcome, said.status, said.address) == (Outcome.OK, 200, f"127.0.0.1:{origin.port}"), said
            assert said.bytes_out > len(data)
            assert said.bytes_in > len(data)
            assert not said.denied
            assert names.lookups(HOST) == 1
            assert len(door.tunnels) == 0

    run(test())


GOOD = real(HOST)
ODD_FIRST_BYTES = {
    "another server name": (real("other.test"), "server name `other.test`"),
    "a name below ours": (real(f"a.{HOST}"), f"server name `a.{HOST}`"),
    "ours as a part of another": (real(f"{HOST}.evil.test"), f"server name `{HOST}.evil.test`"),
    "no server name": (real(None), "no server name"),
    "encrypted client hello": (made(sni(HOST.encode()), ech()), "encrypted client hello"),
    "esni of old": (made(sni(HOST.encode()), ech(0xFFCE)), "encrypted client hello"),
    "two names in one extension": (made(sni(HOST.encode(), b"other.test")), "no tls: more than one server name"),
    "the extension twice": (made(sni(HOST.encode()), sni(b"other.test")), "no tls: extension 0 twice"),
    "a name of another kind": (made(sni(HOST.encode(), kind=1)), "no tls: server name of type 1"),
    "a name with a zero byte": (made(sni(HOST.encode() + b"\0.evil.test")), "no tls: server name that is no host name"),
    "an empty name": (made(sni(b"")), "no tls: server name that is no host name"),
    "an address as a name": (real("127.0.0.1"), "no server name"),
    "bytes behind the hello": (records(GOOD[5:] + b"\1"), "no tls: bytes behind the hello in its record"),
    "bytes behind the extensions": (
        records(message(body([sni(HOST.encode())], behind=b"\0"))), "no tls: bytes behind the extensions"
    ),
    "another record inside": (
        records(GOOD[5:205]) + records(b"\1", kind=20) + records(GOOD[205:]), "no tls: another record inside the hello"
    ),
    "an alert": (b"\x15\3\1\0\2\2\x28", "no tls: not a tls handshake"),
    "application data": (b"\x17\3\3\0\5hello", "no tls: not a tls handshake"),
    "ssl 2": (b"\x80\x2e\1\3\1\0\x15\0\0\0\x10", "no tls: not a tls handshake"),
    "ssh": (b"SSH-2.0-OpenSSH_9.9\r\n", "no tls: not a tls handshake"),
    "http": (b"GET /latest/meta-data/ HTTP/1.1\r\nhost: origin.test\r\n\r\n", "no tls: not a tls handshake"),
    "a server's hello": (records(message(body(None), kind=2)), "no tls: handshake message of type 2"),
    "a record of no bytes": (b"\x16\3\1\0\0", "no tls: tls record of 0 bytes"),
    "a record that is too long": (b"\x16\3\1\x40\1", "no tls: tls record of 16385 bytes"),
    "a hello without an end": (b"\x16\3\1\x40\0\1\1\0\0" + bytes(16), "no tls: hello of 65540 bytes, limit is 16384"),
    "dtls": (b"\x16\xfe\xff\0\0", "no tls: tls record version 254"),
    "half a hello": (GOOD[:100], "100 bytes and no whole hello within 400 ms"),
    "one byte": (b"\x16", "1 bytes and no whole hello within 400 ms"),
    "nothing": (b"", "0 bytes and no whole hello within 400 ms"),
}  # fmt: skip


@pytest.mark.parametrize("which", ODD_FIRST_BYTES)
@pytest.mark.parametrize("early", [False, True], ids=["after the 200", "with the request"])
def test_what_is_not_tls_to_the_named_host_is_refused_before_anything_is_dialled(
    tmp_path: Path, names: NameServer, which: str, early: bool
) -> None:
    first, why = ODD_FIRST_BYTES[which]

    async def test() -> None:
        async with Origin() as origin, MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
            door.dialer.tls_port = origin.port
            streams, writer, head = await door.connect(f"{HOST}:443", first if early else b"")
            assert head.startswith(b"HTTP/1.1 200 ")
            if not early:
                writer.write(first)
            got = await everything(streams)
            said = await door.until_over()
            assert (said.reason, said.error, said.denied) == ("no-permit", f"tcp:CONNECT: {why}", True)
            assert (said.outcome, said.bytes_out, said.bytes_in, said.address) == (Outcome.REFUSED, 0, 0, "")
            assert got == (b"" if why.startswith("no tls") or "whole hello" in why else ALERT_DENIED)
            assert origin.connections == 0
            assert names.lookups(HOST) == 0, "a refused name was looked up"
            assert door.figures.refused == {"no-permit": 1}
            assert door.figures.reached["header_ms"] == ("within" in why)
            writer.close()

    run(test())


@pytest.mark.parametrize("which", ODD_FIRST_BYTES)
def test_what_is_not_tls_to_the_named_host_passes_where_tcp_is_permitted(tmp_path: Path, names: NameServer, which: str) -> None:
    first, _ = ODD_FIRST_BYTES[which]

    async def test() -> None:
        async with Origin() as origin, MiniDoor(tmp_path, RAW, dns_servers=(names.address,), header_ms=50) as door:
            door.dialer.tls_port = origin.port
            streams, writer, _ = await door.connect(f"{HOST}:443")
            writer.write(first)
            assert await streams.readexactly(len(first)) == first
            writer.write(b"and more")
            writer.write_eof()
            assert await everything(streams) == b"and more"
            said = await door.until_over()
            assert (said.outcome, said.bytes_out, said.bytes_in) == (Outcome.OK, len(first) + 8, len(first) + 8)
            writer.close()

    run(test())


SAME_HOST = {
    "in capitals": made(sni(b"ORIGIN.Test")),
    "with a dot at its end": made(sni(b"origin.test.")),
    "in a hello of many records": records(GOOD[5:], 1, 2, 3, 100, 50),
    "with early data behind it": GOOD + records(b"\1", kind=20) + records(b"early", kind=23),
}


@pytest.mark.parametrize("which", SAME_HOST)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_the_named_host_is_known_however_its_hello_is_cut(tmp_path: Path, names: NameServer, which: str, step: int) -> None:
    first = SAME_HOST[which]

    async def test() -> None:
        async with Origin() as origin, MiniDoor(tmp_path, dns_servers=(names.address,), header_ms=5_000) as door:
            door.dialer.tls_port = origin.port
            streams, writer, _ = await door.connect(f"{HOST}:443")
            for at in range(0, len(first), step):
                writer.write(first[at : at + step])
                await asyncio.sleep(0)
            assert await streams.readexactly(len(first)) == first
            writer.close()
            assert (await door.until_over()).outcome is Outcome.OK

    run(test())


@pytest.mark.parametrize(("target", "why"), [
    ("origin.test:8443", "port 8443"), ("origin.test:22", "port 22"), ("127.0.0.1:443", "address instead of a name"),
    ("[::1]:443", "address instead of a name"), ("127.0.0.1:22", "address instead of a name"),
])  # fmt: skip
def test_another_port_or_an_address_is_refused_before_the_200(tmp_path: Path, names: NameServer, target: str, why: str) -> None:
    async def test() -> None:
        async with MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
            streams, writer, head = await door.connect(target, GOOD)
            assert head.startswith(b"HTTP/1.1 403 Forbidden\r\n")
            answer = json.loads(await everything(streams))
            assert (answer["reason"], answer["action"]) == ("no-permit", "tcp:CONNECT")
            assert len(answer["call_id"]) == 32
            said = await door.until_over()
            assert (said.reason, said.error) == ("no-permit", f"tcp:CONNECT: {why}")
            assert names.lookups(HOST) == 0
            writer.close()

    run(test())


def test_another_port_that_is_permitted_is_dialled_before_the_200(tmp_path: Path, names: NameServer) -> None:
    """So a server that speaks first is heard, and what cannot be reached is answered as such."""

    async def greet(streams: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        assert await streams.readline() == b"QUIT\r\n"
        writer.write(b"221 bye\r\n")

    async def test() -> None:
        async with Origin(greet) as origin, MiniDoor(tmp_path, RAW, dns_servers=(names.address,)) as door:
            streams, writer, head = await door.connect(f"{HOST}:{origin.port}", b"QUIT\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert await everything(streams) == b"220 hello\r\n221 bye\r\n"
            writer.close()
            said = await door.until_over()
            assert (said.outcome, said.bytes_out, said.bytes_in) == (Outcome.OK, 6, 20)
            closed = origin.port
        async with MiniDoor(tmp_path / "2", RAW, dns_servers=(names.address,)) as door:
            for target, status, code in (
                (f"{HOST}:{closed}", b"502", "connect"), ("nowhere.test:80", b"502", "dns"), ("10.0.0.1:80", b"403", "private"),
            ):  # fmt: skip
                streams, writer, head = await door.connect(target)
                assert head.startswith(b"HTTP/1.1 " + status), (target, head)
                writer.close()
                assert code in door.last.error, door.last
            assert door.last.reason == "address"
            assert door.figures.failed == {"connect": 1, "dns": 1}
            assert door.figures.refused == {"address": 1}

    (tmp_path / "2").mkdir()
    run(test())


def test_a_tls_client_hears_an_alert_when_its_origin_cannot_be_reached(tmp_path: Path, names: NameServer) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))  # does not listen

        async def test() -> None:
            async with MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
                door.dialer.tls_port = busy.getsockname()[1]
                streams, writer, _ = await door.connect(f"{HOST}:443", GOOD)
                assert await everything(streams) == ALERT_FAILED
                said = await door.until_over()
                assert (said.outcome, said.status) == (Outcome.ERROR, 502)
                assert said.error.startswith(f"connect: 127.0.0.1:{busy.getsockname()[1]}: ")
                writer.close()

        run(test())


def test_an_upgraded_connection_is_a_tunnel_from_its_answer_on(tmp_path: Path, names: NameServer) -> None:
    """What was read behind the heads goes first, in each direction; what had moved before counts."""

    async def test() -> None:
        async with Origin() as origin, MiniDoor(tmp_path, tunnel_idle_ms=60_000) as door:
            door.relays_to = origin.port
            streams, writer, head = await door.connect(f"{HOST}:443", b"early")
            assert head == b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
            assert await streams.readexactly(10) == b"from below"
            assert await streams.readexactly(5) == b"early"
            writer.write(b"more")
            assert await streams.readexactly(4) == b"more"
            writer.write_eof()
            assert await streams.read() == b""
            said = await door.until_over()
            assert (said.outcome, said.status, said.bytes_out, said.bytes_in) == (Outcome.OK, 101, 100 + 4, 1000 + 9)
            assert origin.heard == b"earlymore"
            assert len(door.tunnels) == 0

    run(test())


def test_ten_thousand_bytes_before_the_origin_is_there_are_kept_and_more_is_not_read(tmp_path: Path, names: NameServer) -> None:
    names[HOST] = say("127.0.0.1", silent=("AAAA",))  # the lookup takes a quarter of a second
    data = GOOD + bytes(range(256)) * (1 << 14)

    async def test() -> None:
        async with Origin() as origin, MiniDoor(tmp_path, dns_servers=(names.address,)) as door:
            door.dialer.tls_port = origin.port
            streams, writer, _ = await door.connect(f"{HOST}:443")
            writer.write(data)
            await asyncio.sleep(0.1)
            (tunnel,) = door.open
            assert len(GOOD) <= len(tunnel._waiting.data) < 1 << 20
            assert origin.connections == 0
            assert await streams.readexactly(len(data)) == data
            writer.close()
            await door.until_over()

    run(test())
