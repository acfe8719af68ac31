"""Who calls, asked by a real door: secrets, tokens, their ends, and a flood of wrong ones."""

import socket
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enforcers.core.flood import EVERY_NS, KEYS_MAX
from enforcers.core.jws import twin_of
from schemas.agents import Agent
from schemas.config import Issuer
from schemas.limits import MIB
from schemas.records import SEPARATOR
from schemas.selectors import make_selector
from tests.support.egress import DoorProcess, EgressSite, credential
from tests.support.rawhttp import RawOrigin, Reader, answer_ok
from tests.support.tokens import AUDIENCE, EC, ED, ISSUER, claims, jwks, token

ISSUED = Issuer(url=ISSUER, audience=AUDIENCE, jwks_file="")


class Tokens:
    """A site whose agents `researcher` and `planner` have tokens of one issuer, and a door on it."""

    def __init__(self, folder: Path) -> None:
        self.jwks = folder / "idp.json"
        self.jwks.write_bytes(jwks(ED, EC))
        listed = [Agent(name=name, owner="o", secret="", subs=((ISSUER, sub),)) for name, sub in
                  (("researcher", "r-17"), ("planner", "p-3"))]  # fmt: skip
        self.site = EgressSite(
            folder / "home", issuers=(replace(ISSUED, jwks_file=str(self.jwks)),), listed=tuple(listed), agents=("reader",)
        )
        self.door = self.site.start()
        self.origin = RawOrigin(answer_ok)

    def __enter__(self) -> "Tokens":
        self.origin.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self.origin.__exit__(None, None, None)
        self.site.close()

    def ask(self, value: bytes, client: socket.socket) -> int:
        """One call with this `Proxy-Authorization`; the status."""
        plain = self.site.get(self.origin.authority)
        client.sendall(plain.replace(credential(), value))
        return Reader(client).answer().status


def fresh(**more: Any) -> dict[str, Any]:
    """The claims of a token that is good now."""
    now = int(time.time())
    return claims(**{"exp": now + 600, "iat": now - 5, **more})


def bearer(text: str) -> bytes:
    return b"Bearer " + text.encode()


def test_a_token_names_the_agent_its_chain_and_all_that_may_be_revoked(tmp_path: Path) -> None:
    text = token(fresh(sub="alice", act={"sub": "r-17", "act": {"sub": "p-3"}}), key=EC)
    with Tokens(tmp_path) as made, made.door.connect() as client:
        assert made.ask(bearer(text), client) == 200
        assert made.ask(credential("researcher+s-1", text), client) == 200
        assert made.ask(credential("planner", text), client) == 407
        records = [said for said in made.site.until_records(5) if said["kind"] == "decision"]
        chain = SEPARATOR.join(('User::"alice"', 'Agent::"planner"', 'Agent::"researcher"'))
        assert [(said["agent"], said["chain"], said["session"], said["proof"]) for said in records] == [
            ("researcher", chain, "", "jws"), ("researcher", chain, "s-1", "jws"),
        ]  # fmt: skip
        assert {said["assurance"] for said in records} == {SEPARATOR.join(("signed", "signed"))}
        assert {said["credential"] for said in records} == {make_selector("token", text).name}
        assert text not in made.door.log() + repr(made.site.records())
        assert len(made.origin.seen) == 2
        assert not any(text.encode() in request for request in made.origin.seen)


def test_a_revoked_token_is_refused_in_both_of_its_texts_and_so_is_everybody_in_its_chain(tmp_path: Path) -> None:
    text = token(fresh(sub="alice", act={"sub": "r-17", "act": {"sub": "p-3"}}), key=EC)
    with Tokens(tmp_path) as made, made.door.connect() as client:
        assert [made.ask(bearer(one), client) for one in (text, twin_of(text))] == [200, 200]
        made.site.revoke(make_selector("token", text).text)
        assert [made.ask(bearer(one), client) for one in (text, twin_of(text))] == [403, 403]
        made.site.lift(make_selector("token", text).text)
        for selector in ("agent*:planner", 'principal:User::"alice"', f"issuer:{ISSUER}"):
            assert made.ask(bearer(text), client) == 200
            made.site.revoke(selector)
            assert made.ask(bearer(text), client) == 403, selector
            made.site.lift(selector)


def test_a_token_ends_with_its_time_and_with_its_issuers_key(tmp_path: Path) -> None:
    with Tokens(tmp_path) as made, made.door.connect() as client:
        now = int(time.time())
        short, long = token(fresh(exp=now + 4)), token(fresh(exp=now + 600), key=EC)
        assert [made.ask(bearer(one), client) for one in (short, long)] == [200, 200]
        made.jwks.write_bytes(jwks(ED))
        deadline = time.monotonic() + 10
        while made.ask(bearer(long), client) != 407:
            assert time.monotonic() < deadline, "the key is gone and its token is still good"
            time.sleep(0.05)
        time.sleep(max(0.0, now + 4 - time.time()))
        assert made.ask(bearer(short), client) == 407
        errors = {said["error"] for said in made.site.records() if said["kind"] == "count"}
        deadline = time.monotonic() + 5
        while not errors >= {"token-key", "token-expired"}:
            assert time.monotonic() < deadline, errors
            errors = {said["error"] for said in made.site.records() if said["kind"] == "count"}


def test_a_rotated_secret_ends_at_once_on_open_connections_too(tmp_path: Path) -> None:
    new = Agent(name="reader", owner="o", secret="scrypt$2$1$1$c2FsdA==$QUFBQUFBQUFBQUFBQUFBQQ==")
    with EgressSite(tmp_path / "home") as site, RawOrigin(answer_ok) as origin:
        door = site.start()
        with door.connect() as client:
            reader = Reader(client)
            client.sendall(site.get(origin.authority))
            assert reader.answer().status == 200
            site.listed = (new,)
            site.know()
            client.sendall(site.get(origin.authority))
            assert reader.answer().status == 407


FLOOD = 100_000
CLIENTS = 32


def wrong(site: EgressSite, authority: str, number: int) -> bytes:
    """One of three kinds: a name that nobody has, one of a few such names, a guess at a secret that is known here."""
    user, secret = ((f"n{number}", "x"), (f"m{number % 7}", "x"), ("reader", f"guess-{number}"))[number % 3]
    return site.get(authority).replace(credential(), credential(user, secret))


@pytest.mark.timeout(300)
def test_a_hundred_thousand_wrong_credentials_are_counted_exactly_in_a_small_spool_while_right_ones_are_served(
    tmp_path: Path,
) -> None:
    with EgressSite(tmp_path / "home") as site, RawOrigin(answer_ok) as origin:
        door = site.start()
        clients = [door.connect() for _ in range(CLIENTS)]
        right = door.connect()
        reader = Reader(right)
        statuses: Counter[int] = Counter()
        served = 0
        plain = site.get(origin.authority)
        right.sendall(plain)
        assert reader.answer().status == 200
        before, begun = door.memory_bytes(), time.monotonic()
        for first in range(0, FLOOD, CLIENTS):
            for number, client in enumerate(clients):
                client.sendall(wrong(site, origin.authority, first + number))
            if first % (CLIENTS * 50) == 0:
                right.sendall(plain)
                asked = time.monotonic()
                assert reader.answer().status == 200
                assert time.monotonic() - asked < 2
                served += 1
            for client in clients:
                statuses[int(_answer(client)[9:12])] += 1
        took = time.monotonic() - begun
        assert statuses == {407: FLOOD}
        assert served > 50
        _counted(site, door, FLOOD, took)
        assert door.memory_bytes() - before < 32 * MIB
        for client in (*clients, right):
            client.close()
        assert len(origin.seen) == served + 1


def _answer(client: socket.socket) -> bytes:
    """One short answer: its length stands in its head."""
    data = b""
    while True:
        data += client.recv(1 << 16)
        head, end, body = data.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            return data


def _counted(site: EgressSite, door: DoorProcess, expected: int, took_s: float) -> None:
    deadline = time.monotonic() + 10
    while True:
        counts = [said for said in site.records(door) if said["kind"] == "count"]
        if sum(said["count"] for said in counts) >= expected or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert sum(said["count"] for said in counts) == expected
    assert {(said["reason"], said["error"], said["status"]) for said in counts} == {("identity", "credential", 407)}
    assert sum(said["count"] for said in counts if said["agent"] == "reader") == expected // 3
    seconds = (took_s * 1_000_000_000 + 10 * EVERY_NS) / EVERY_NS
    assert len(counts) <= (KEYS_MAX + 1) * seconds
    assert "guess-" not in repr(counts)
    assert door.log() == "" or "guess-" not in door.log()
