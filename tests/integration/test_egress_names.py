"""A real door, a real name server: what is refused is never looked up, what is dialled was judged, and nothing of ours is."""

import json
import select
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.bundle import Bundle, Rule
from schemas.process import write_run_file
from tests.support.dns import NameServer, say
from tests.support.egress import EgressSite
from tests.support.hellos import real
from tests.support.rawhttp import RawOrigin, Reader, answer_with, read_answer

WEB = Rule(id="web", forbid=False, action=("in", 'Action::"http"'))
TUNNELS = Rule(id="tunnels", forbid=False, action=("==", 'Action::"http:CONNECT"'))
RAW = Rule(id="raw", forbid=False, action=("==", 'Action::"tcp:CONNECT"'), resource=("is", "Host"))
SECRET = Rule(id="secret", forbid=True, resource=("in", 'Domain::"secret.example"'))
OK = answer_with(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
TUNNELS_OPEN = 100
CUT_S_MAX = 0.5


@pytest.fixture
def names() -> Iterator[NameServer]:
    with NameServer() as server:
        yield server


def site_of(tmp_path: Path, names: NameServer, *rules: Rule, allow: tuple[str, ...] = ("127.0.0.0/8",)) -> EgressSite:
    return EgressSite(
        tmp_path / "home", bundle=Bundle(rules=rules), allow_addresses=allow,
        egress={"dns_servers": (names.address,), "header_ms": 500},
    )  # fmt: skip


def refused(sock: socket.socket, request: bytes) -> dict[str, str]:
    sock.sendall(request)
    answer = read_answer(sock)
    assert answer.status == 403, answer
    return dict(json.loads(answer.body))


def test_a_refused_name_is_never_looked_up(tmp_path: Path, names: NameServer) -> None:
    names["api.secret.example"] = say("127.0.0.1")
    names["open.example"] = say("127.0.0.1")
    with site_of(tmp_path, names, WEB, TUNNELS, SECRET) as site, RawOrigin(OK) as origin:
        door = site.start()
        with door.connect() as client:
            for request in (
                site.get(f"api.secret.example:{origin.port}"), site.get(f"API.secret.example.:{origin.port}"),
                site.connect("api.secret.example:443"), site.connect(f"api.secret.example:{origin.port}"),
            ):  # fmt: skip
                assert refused(client, request)["reason"] == "forbid"
            assert refused(client, site.connect(f"open.example:{origin.port}"))["reason"] == "no-permit"  # no tcp:CONNECT
        with door.connect() as client:
            client.sendall(site.connect("open.example:443") + real("api.secret.example"))
            got = Reader(client).rest()
            assert got == b"HTTP/1.1 200 Connection established\r\n\r\n" + bytes.fromhex("15030300020231")
        effect = site.records()[-1]
        assert (effect["kind"], effect["reason"]) == ("effect", "no-permit")
        assert effect["error"] == "tcp:CONNECT: server name `api.secret.example`"
        assert not names.seen
        with door.connect() as client:
            client.sendall(site.get(f"open.example:{origin.port}"))
            assert read_answer(client).status == 200
        assert names.seen == {("open.example", "A"): 1, ("open.example", "AAAA"): 1}
        assert origin.connections == 1


def test_a_name_that_is_public_first_and_loopback_second_is_refused_the_second_time(tmp_path: Path, names: NameServer) -> None:
    """127.0.0.2 stands for a public address. The second lookup leads to an origin that is there, and it sees nothing."""
    names["rebind.example"] = [say("127.0.0.2", ttl=0), say("127.0.0.1", ttl=0), say("::1", ttl=0), say("0.0.0.0", ttl=0)]
    with site_of(tmp_path, names, WEB, allow=("127.0.0.2/32",)) as site, RawOrigin(OK, "127.0.0.2") as public:
        door = site.start()
        inside = socket.create_server(("127.0.0.1", public.port))
        with door.connect() as client, inside:
            client.sendall(site.get(f"rebind.example:{public.port}", "/", "Connection: close"))
            assert read_answer(client).status == 200
        with door.connect() as client:
            public.close()  # the kept connection goes, so that the next request needs one of its own
            time.sleep(0.1)
            for kind in ("loopback", "loopback", "unspecified"):
                said = refused(client, site.get(f"rebind.example:{public.port}"))
                assert said["reason"] == "address"
                assert said["message"].startswith(f"{kind}: ")
        assert names.lookups("rebind.example") == 4
        effects = [said for said in site.records() if said["kind"] == "effect"]
        assert [(said["reason"], said["address"]) for said in effects] == [
            ("", f"127.0.0.2:{public.port}"), ("address", ""), ("address", ""), ("address", ""),
        ]  # fmt: skip


def test_a_door_dials_neither_itself_nor_any_other_part_of_wardline(tmp_path: Path, names: NameServer) -> None:
    names["me.example"] = say("127.0.0.1")
    names["any.example"] = say("0.0.0.0")
    with site_of(tmp_path, names, WEB, TUNNELS, RAW, allow=("0.0.0.0/0", "::/0")) as site, RawOrigin(OK) as store:
        door, other = site.start(), site.start()
        with door.connect() as client:
            client.sendall(site.get(f"me.example:{store.port}", "/", "Connection: close"))
            assert read_answer(client).status == 200
        write_run_file(site.home.run_file("store"), {"name": "store", "pid": 1, "address": f"127.0.0.1:{store.port}"})
        for port in (door.port, other.port, int(door.said["metrics"].rpartition(":")[2])):
            for host in ("me.example", "any.example", "127.0.0.1", "0.0.0.0"):
                for request in (site.get(f"{host}:{port}"), site.connect(f"{host}:{port}")):
                    with door.connect() as client:
                        said = refused(client, request)
                    assert said["reason"] == "address"
                    assert "wardline's own listener" in said["message"]
        with door.connect() as client:
            assert "wardline's own listener" in refused(client, site.connect(f"me.example:{store.port}"))["message"]
        assert store.connections == 1


@pytest.mark.parametrize("tunnel", [False, True], ids=["call", "tunnel"])
def test_a_name_server_that_says_nothing_is_a_timeout_of_the_lookup_and_not_of_the_dial(
    tmp_path: Path, names: NameServer, tunnel: bool
) -> None:
    names["mute.example"] = say(silent=("A", "AAAA"))
    with site_of(tmp_path, names, WEB, TUNNELS, RAW) as site:
        site.egress["dns_ms"] = 300
        door = site.start()
        with door.connect() as client:
            client.sendall(site.connect("mute.example:8443") if tunnel else site.get("mute.example"))
            assert read_answer(client).status == 504
        assert site.until_records(2)[1]["error"].startswith("timeout: ")
        figures = door.figures()
        reached = {limit: figures.get(f'wardline_door_limits_total{{limit="{limit}"}}', 0) for limit in ("dns_ms", "dial_ms")}
        assert reached == {"dns_ms": 1, "dial_ms": 0}


def test_a_hundred_tunnels_of_a_revoked_agent_are_cut_within_half_a_second(tmp_path: Path, names: NameServer) -> None:
    names["origin.example"] = say("127.0.0.1")

    def echo(_: RawOrigin, sock: socket.socket) -> None:
        while data := sock.recv(1 << 16):
            sock.sendall(data)

    with site_of(tmp_path, names, TUNNELS, RAW) as site, RawOrigin(echo) as origin:
        site.put_agents("reader", "writer")
        site._change()
        door = site.start()
        clients = []
        for number in range(TUNNELS_OPEN + 1):
            clients.append(door.connect())
            user = "writer" if number == TUNNELS_OPEN else "reader"
            clients[-1].sendall(site.connect(f"origin.example:{origin.port}", user))
            assert clients[-1].recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            clients[-1].sendall(b"ping")
            assert clients[-1].recv(4) == b"ping"
        *revoked, left = clients
        begun = time.monotonic()
        site.revoke("agent:reader")
        open_ones = set(revoked)
        while open_ones and time.monotonic() < begun + 5:
            for sock in select.select(list(open_ones), [], [], 0.05)[0]:
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
                open_ones.discard(sock)
        took = time.monotonic() - begun
        assert not open_ones
        assert took < CUT_S_MAX, f"{took:.3f} s"
        left.sendall(b"still here")
        assert left.recv(64) == b"still here"
        effects = [said for said in site.records() if said["kind"] == "effect"]
        assert len(effects) == TUNNELS_OPEN
        assert {(said["reason"], said["outcome"], said["bytes_out"], said["bytes_in"]) for said in effects} == {
            ("revoked", "refused", 4, 4)
        }
        assert {said["address"] for said in effects} == {f"127.0.0.1:{origin.port}"}
        for sock in clients:
            sock.close()


def test_a_client_sees_tls_refused_and_no_broken_connection(tmp_path: Path, names: NameServer) -> None:
    """What a user of curl or Python reads is `access denied`, and not that something closed."""
    with site_of(tmp_path, names, TUNNELS) as site:
        door = site.start()
        with door.connect() as client:
            client.sendall(site.connect("origin.example:443"))
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            with pytest.raises(ssl.SSLError, match="(?i)access.denied"):
                ssl.create_default_context().wrap_socket(client, server_hostname="another.example")
