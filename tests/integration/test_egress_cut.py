"""What is revoked: each open tunnel that it is true of is cut in both directions, and no other; what waits is not sent."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enforcers.core.jws import parse_jwks
from schemas.agents import Agent
from schemas.config import Issuer
from schemas.selectors import make_selector
from tests.support.dns import NameServer, say
from tests.support.egress import EgressSite, credential
from tests.support.rawhttp import OK, RawOrigin, Reader, read_answer, requests
from tests.support.tokens import AUDIENCE, EC, ED, ISSUER, claims, jwks, token

HOST = "api.origin.example"
CUT_S_MAX = 0.5
LISTED = tuple(
    Agent(name=name, owner="o", secret="", subs=((ISSUER, sub),)) for name, sub in (("researcher", "r-17"), ("planner", "p-3"))
)


class Echo(RawOrigin):
    """Sends back what it gets, and notes how each connection ended, `end` or `reset`, by the four bytes that it began with."""

    def __init__(self) -> None:
        self.ends: dict[bytes, str] = {}
        super().__init__(self._echo)

    def _echo(self, _: RawOrigin, sock: socket.socket) -> None:
        first = Reader(sock).exactly(4)
        sock.sendall(first)
        try:
            while data := sock.recv(1 << 16):
                sock.sendall(data)
            self.ends[first] = "end"
        except OSError:
            self.ends[first] = "reset"


class Cut:
    """A door for agents with tokens and agents with secrets, and an origin that tunnels lead to."""

    def __init__(self, folder: Path, names: NameServer) -> None:
        self.jwks = folder / "idp.json"
        self.jwks.write_bytes(jwks(ED, EC))
        self.site = EgressSite(
            folder / "home", agents=("reader", "writer"), listed=LISTED,
            issuers=(Issuer(url=ISSUER, audience=AUDIENCE, jwks_file=str(self.jwks)),),
            egress={"dns_servers": (names.address,), "upstreams_per_agent_host": 1, "dns_ms": 20_000},
        )  # fmt: skip
        self.door = self.site.start()
        self.origin = Echo()
        self.authority = f"{HOST}:{self.origin.port}"

    def open(self, value: bytes, first: bytes = b"ping") -> socket.socket:
        """A tunnel by this `Proxy-Authorization`, in which something has moved both ways."""
        client = self.door.connect()
        client.sendall(self.site.connect(self.authority).replace(credential(), value))
        answer = client.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        self.moves(client, first)
        return client

    def moves(self, client: socket.socket, what: bytes = b"ping") -> None:
        client.sendall(what)
        assert client.recv(16) == what

    def close(self) -> None:
        self.origin.close()
        self.site.close()


@pytest.fixture(scope="module")
def names() -> Iterator[NameServer]:
    with NameServer() as server:
        server[HOST] = say("127.0.0.1")
        server["mute.example"] = say(silent=("A", "AAAA"))
        yield server


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory, names: NameServer) -> Iterator[Cut]:
    made = Cut(tmp_path_factory.mktemp("cut"), names)
    yield made
    made.close()


def fresh(**more: object) -> dict[str, object]:
    """The claims of a good token: `researcher` acts for `planner`, which acts for alice."""
    now = int(time.time())
    acts = {"sub": "alice", "act": {"sub": "r-17", "act": {"sub": "p-3"}}}
    return claims(**{"exp": now + 600, "iat": now - 5, **acts, **more})


def reset(client: socket.socket, seconds: float) -> bool:
    """Whether its connection is broken off within so long, and not ended."""
    client.settimeout(seconds)
    try:
        client.recv(1)
    except ConnectionResetError:
        return True
    except TimeoutError:
        pass
    return False


def session(text: str) -> bytes:
    return credential("researcher+s-1", text)


REVOKED: dict[str, Callable[[Cut, str], str]] = {
    "the agent": lambda _, __: "agent:researcher",
    "an agent that it acts for": lambda _, __: "agent*:planner",
    "the session": lambda _, __: "session:s-1",
    "the destination": lambda cut, _: f"destination:{cut.authority}",
    "the host at any port": lambda _, __: f"destination:{HOST}",
    "the domain": lambda _, __: "destination:origin.example",
    "the root principal": lambda _, __: 'principal:User::"alice"',
    "the token": lambda _, text: make_selector("token", text).text,
    "the issuer": lambda _, __: f"issuer:{ISSUER}",
    "the issuer's key": lambda _, __: f"key:{parse_jwks(jwks(EC), 'idp')[0].thumbprint}",
}


@pytest.mark.parametrize("what", REVOKED)
def test_a_tunnel_is_cut_in_both_directions_when_it_is_revoked_and_its_effect_says_so(cut: Cut, what: str) -> None:
    text = token(fresh(jti=what), key=EC)
    site, before, first = cut.site, len(cut.site.records()), f"{list(REVOKED).index(what):04}".encode()
    with cut.open(session(text), first) as mine, cut.open(credential("writer")) as other:
        selector = REVOKED[what](cut, text)
        begun = time.monotonic()
        site.revoke(selector)
        try:
            assert reset(mine, 5), "the client's side is broken off"
            assert time.monotonic() - begun < CUT_S_MAX
            if not selector.startswith("destination"):
                cut.moves(other)
            deadline = time.monotonic() + 5
            while first not in cut.origin.ends:
                assert time.monotonic() < deadline, "the origin's side is open"
                time.sleep(0.005)
            assert cut.origin.ends[first] == "reset"
            (call,) = [one["call"] for one in site.records()[before:] if one["kind"] == "decision" and one["session"] == "s-1"]
            effect = site.effect_of(call)
            said = (effect["verdict"], effect["reason"], effect["outcome"], effect["error"])
            assert said == (0, "revoked", "refused", "revoked while open")
            assert (effect["bytes_out"], effect["bytes_in"], effect["epoch"]) == (4, 4, site.epoch)
            assert effect["address"] == f"127.0.0.1:{cut.origin.port}"
            with cut.door.connect() as again:
                again.sendall(site.connect(cut.authority).replace(credential(), session(text)))
                got = read_answer(again)
                assert (got.status, got.json()["reason"]) == (403, "revoked")
        finally:
            site.lift(selector)


@pytest.mark.parametrize("way", ["the token runs out", "its key is taken out", "control forgets the agent", "all is paused"])
def test_a_tunnel_ends_with_what_it_was_opened_by(cut: Cut, way: str) -> None:
    text = token(fresh(jti=way, **({"exp": int(time.time()) + 2} if "runs out" in way else {})), key=EC)
    site, before = cut.site, len(cut.site.records())
    with cut.open(session(text)) as mine, cut.open(credential("writer")) as other:
        if "key" in way:
            cut.jwks.write_bytes(jwks(ED))
        elif "forgets" in way:
            site.listed = LISTED[1:]
            site.know("reader", "writer")
        elif "paused" in way:
            site.pause()
        try:
            assert reset(mine, 8)
            if "paused" not in way:
                cut.moves(other)
            (call,) = [one["call"] for one in site.records()[before:] if one["kind"] == "decision" and one["session"] == "s-1"]
            effect = site.effect_of(call)
            reason = "paused" if "paused" in way else "identity"
            assert (effect["verdict"], effect["reason"], effect["outcome"]) == (0, reason, "refused")
        finally:
            cut.jwks.write_bytes(jwks(ED, EC))
            site.listed = LISTED
            site.pause(False)
            site.know("reader", "writer")
            _served(cut, session(token(fresh(), key=EC)))


def _served(cut: Cut, value: bytes) -> None:
    """Wait until the door knows a caller again."""
    deadline = time.monotonic() + 10
    while True:
        with cut.door.connect() as client:
            client.sendall(cut.site.connect(cut.authority).replace(credential(), value))
            if client.recv(1 << 16).startswith(b"HTTP/1.1 200 "):
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


WAITS = {
    "its agent": "agent:researcher", "its host": f"destination:{HOST}", "whom it acts for": 'principal*:User::"alice"',
    "its token": "",
}  # fmt: skip


@pytest.mark.parametrize("what", WAITS)
def test_an_allowed_call_that_waits_for_a_connection_when_it_is_revoked_is_not_sent(cut: Cut, what: str) -> None:
    """The one connection that its agent may have there is in use; what is out is cut too, so that one becomes free."""

    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for request in requests(sock):
            origin.seen.append(request)
            if b"/held" in request:
                time.sleep(30)
            sock.sendall(OK)

    text, site = token(fresh(jti=f"waits {what}"), key=EC), cut.site
    selector = WAITS[what] or make_selector("token", text).text
    with RawOrigin(handle) as origin, cut.door.connect() as out, cut.door.connect() as waits:
        authority = f"{HOST}:{origin.port}"
        for client, path in ((out, "/held"), (waits, "/waits")):
            client.sendall(site.get(authority, path).replace(credential(), session(text)))
            deadline = time.monotonic() + 5
            while path == "/held" and not origin.seen:
                assert time.monotonic() < deadline
                time.sleep(0.005)
        deadline = time.monotonic() + 5
        while sum(said["resource"] == f'Host::"{authority}"' for said in site.records()) < 2:
            assert time.monotonic() < deadline, "both are decided"
            time.sleep(0.005)
        site.revoke(selector)
        try:
            got = read_answer(waits)
            assert (got.status, got.json()["reason"]) == (403, "revoked")
            effect = site.effect_of(got.json()["call_id"])
            assert (effect["verdict"], effect["reason"], effect["error"]) == (0, "revoked", "revoked while waiting")
            assert (effect["bytes_out"], effect["address"]) == (0, "")
            assert read_answer(out).json()["reason"] == "revoked"
        finally:
            site.lift(selector)
        time.sleep(0.1)
        assert [request.split()[1] for request in origin.seen] == [b"/held"]


def test_a_call_whose_name_is_still_looked_up_when_it_is_revoked_is_not_sent(cut: Cut, names: NameServer) -> None:
    with cut.door.connect() as client:
        client.sendall(cut.site.get("mute.example", user="reader+lookup"))
        deadline = time.monotonic() + 5
        while not names.lookups("mute.example"):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        cut.site.revoke("session:lookup")
        got = read_answer(client)
        assert (got.status, got.json()["reason"]) == (403, "revoked")
        assert cut.site.effect_of(got.json()["call_id"])["error"] == "revoked while waiting"
        cut.site.lift("session:lookup")
