"""A door's memory of who proved what: who is known again, who is checked, and who is known no more."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from enforcers.core.caller import Caller, NoIdentity
from enforcers.core.jws import twin_of
from enforcers.doors.egress import identify as module
from enforcers.doors.egress import scrypt as scrypt_module
from enforcers.doors.egress.identify import KEEPS_S, REMEMBERED, TOKEN_S, Identify
from enforcers.doors.egress.scrypt import parameters, scrypt_fits
from pipeline.cli.agent import make_secret, scrypt_of
from schemas.agents import Agent, encode
from schemas.config import Issuer
from schemas.errors import OperatorFault
from tests.support.tokens import AUDIENCE, EC, ED, ISSUER, NOW_S, Ed25519Key, claims, jwks, token

FIELD = b"proxy-authorization"
HASH = "QUFBQUFBQUFBQUFBQUFBQQ=="


def stored(secret: str) -> str:
    """As `scrypt_of` makes it, at hardly any cost."""
    made = hashlib.scrypt(secret.encode(), salt=b"s" * 16, n=2, r=1, p=1, dklen=32)
    return f"scrypt$2$1$1${base64.b64encode(b's' * 16).decode()}${base64.b64encode(made).decode()}"


def basic(user: str, secret: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{secret}".encode())


class Desk:
    """A door's folder with agents and an issuer, and clocks that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "agents.json"
        self.jwks = folder / "jwks.json"
        self.jwks.write_bytes(jwks(ED, EC))
        self.now = float(NOW_S)
        self.mono = 100.0
        self.epoch = 0
        self.agents: dict[str, Agent] = {}
        self.identify = Identify(
            self.path, [Issuer(url=ISSUER, audience=AUDIENCE, jwks_file=str(self.jwks))], wall=lambda: self.now,
            clock=lambda: self.mono,
        )  # fmt: skip

    def put(self, name: str, secret: str, *subs: str) -> None:
        self.agents[name] = Agent(name=name, owner="o", secret=stored(secret), subs=tuple((ISSUER, sub) for sub in subs))
        self.write()

    def drop(self, name: str) -> None:
        del self.agents[name]
        self.write()

    def write(self) -> None:
        self.epoch += 1
        self.path.write_bytes(encode(self.agents.values(), self.epoch))
        assert self.identify.refresh()

    def known(self, value: bytes | None) -> Caller | None:
        return self.identify.known(value, self.now)

    async def check(self, value: bytes) -> Caller:
        return await self.identify.check([(FIELD, value)])

    async def code(self, value: bytes) -> tuple[str, str]:
        with pytest.raises(NoIdentity) as caught:
            await self.check(value)
        assert self.known(value) is None
        return caught.value.code, caught.value.claimed


@pytest.fixture
def desk(tmp_path: Path) -> Any:
    desk = Desk(tmp_path)
    desk.put("a", "right", "r-17")
    desk.put("b", "other", "p-3")
    yield desk
    desk.identify.close()


def run(job: Coroutine[Any, Any, None]) -> None:
    asyncio.run(job)


# -- secrets -------------------------------------------------------------------------------------------------------------


def test_a_right_secret_is_known_again_by_the_same_bytes_alone(desk: Desk) -> None:
    async def story() -> None:
        value = basic("a+s", "right")
        assert desk.known(value) is None
        made = await desk.check(value)
        assert (made.agent, made.session, made.proof, made.until_s) == ("a", "s", "secret", 0)
        assert made.chain.principals == ('Agent::"a"',)
        assert made.credential == hashlib.sha256(stored("right").encode()).hexdigest()[:32]
        assert desk.known(value) is made
        assert desk.known(basic("a", "right")) is None
        assert desk.known(None) is None

    run(story())


def test_a_wrong_secret_and_a_name_that_nobody_has_are_told_the_same(desk: Desk) -> None:
    async def story() -> None:
        told = set()
        for value in (basic("a", "wrong"), basic("nobody", "right"), basic("b", "right")):
            with pytest.raises(NoIdentity) as caught:
                await desk.check(value)
            told.add((caught.value.code, str(caught.value), caught.value.status))
        assert len(told) == 1
        assert await desk.code(basic("a", "wrong")) == ("credential", "a")
        assert await desk.code(basic("nobody+s", "x")) == ("credential", "nobody")

    run(story())


def test_scrypt_is_asked_once_for_an_agent(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(stored: str, password: str) -> bool:
        asked.append(password)
        return scrypt_fits(stored, password)

    monkeypatch.setattr(scrypt_module, "scrypt_fits", counted)

    async def story() -> None:
        await asyncio.gather(*(desk.check(basic("a", "right")) for _ in range(20)))
        for number in range(20):
            await desk.check(basic(f"a+{number}", "right"))
            assert await desk.code(basic("a", f"wrong {number}")) == ("credential", "a")
        assert asked == ["right"]
        assert await desk.code(basic("nobody", "x")) == ("credential", "nobody")
        assert asked == ["right"]

    run(story())


def test_a_rotated_secret_is_unknown_at_once_and_the_new_one_is_good(desk: Desk) -> None:
    async def story() -> None:
        old = await desk.check(basic("a", "right"))
        other = await desk.check(basic("b", "other"))
        desk.put("a", "new")
        assert desk.known(basic("a", "right")) is None
        assert not desk.identify.still(old)
        assert desk.identify.still(other)
        assert await desk.code(basic("a", "right")) == ("credential", "a")
        assert desk.identify.still(await desk.check(basic("a", "new")))

    run(story())


def test_a_removed_agent_is_unknown_at_once(desk: Desk) -> None:
    async def story() -> None:
        old = await desk.check(basic("a", "right"))
        desk.drop("a")
        assert desk.known(basic("a", "right")) is None
        assert not desk.identify.still(old)
        assert await desk.code(basic("a", "right")) == ("credential", "a")

    run(story())


def test_one_that_is_rotated_while_its_secret_is_checked_is_not_let_in(desk: Desk) -> None:
    async def story() -> None:
        waiting = asyncio.create_task(desk.check(basic("a", "right")))
        await asyncio.sleep(0)
        desk.put("a", "new")
        with pytest.raises(NoIdentity):
            await waiting
        assert desk.known(basic("a", "right")) is None

    run(story())


def test_an_agent_whose_name_has_a_plus_is_known_by_all_of_it(desk: Desk) -> None:
    async def story() -> None:
        desk.put("a+b", "third")
        made = await desk.check(basic("a+b", "third"))
        assert (made.agent, made.session) == ("a+b", "")
        assert (await desk.check(basic("a+c", "right"))).session == "c"

    run(story())


@pytest.mark.parametrize(
    "text",
    [
        "", "scrypt", "plain$x", "scrypt$2$1$1$$", f"scrypt$3$1$1$QUFB${HASH}", f"scrypt$2$0$1$QUFB${HASH}",
        f"scrypt$2$1$17$QUFB${HASH}", f"scrypt$67108864$8$1$QUFB${HASH}", "scrypt$2$1$1$QUFB$QUFB", f"scrypt$2$1$1$Q${HASH}",
        f"scrypt$0$1$1$QUFB${HASH}",
    ],
)  # fmt: skip
def test_a_stored_hash_that_is_none_or_costs_too_much_proves_nobody(desk: Desk, text: str) -> None:
    async def story() -> None:
        desk.agents["c"] = Agent(name="c", owner="o", secret=text)
        desk.write()
        assert await desk.code(basic("c", "")) == ("form", "c")
        assert await desk.code(basic("c", "x")) == ("credential", "c")

    assert parameters(text) is None
    assert not scrypt_fits(text, "x")
    run(story())


def test_what_agent_add_makes_is_what_is_checked() -> None:
    secret = make_secret()
    kept = scrypt_of(secret, b"\xff" * 16)
    assert scrypt_fits(kept, secret)
    assert not scrypt_fits(kept, secret[:-1])


# -- many at once --------------------------------------------------------------------------------------------------------


def test_one_agent_has_few_places_and_the_others_their_turn(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noted(stored: str, password: str) -> bool:
        order.append(password)
        return scrypt_fits(stored, password)

    monkeypatch.setattr(scrypt_module, "scrypt_fits", noted)

    async def story() -> None:
        one = Identify(desk.path, [], threads=1)
        assert one.refresh()
        flood = [asyncio.create_task(one.check([(FIELD, basic("a", f"guess {n}"))])) for n in range(100)]
        right = asyncio.create_task(one.check([(FIELD, basic("b", "other"))]))
        assert (await right).agent == "b"
        said = [task.exception() for task in (await asyncio.wait(flood))[0]]
        codes = [fault.code for fault in said if isinstance(fault, NoIdentity)]
        assert sorted(codes) == ["busy"] * 95 + ["credential"] * 5
        assert {fault.status for fault in said if isinstance(fault, NoIdentity) and fault.code == "busy"} == {429}
        assert order.index("other") <= 2
        one.close()

    run(story())


def test_all_agents_together_have_so_many_places(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrypt_module, "WAITING", 10)
    for number in range(30):
        desk.agents[f"c{number}"] = Agent(name=f"c{number}", owner="o", secret=stored(f"s{number}"))
    desk.write()

    async def story() -> None:
        jobs = [asyncio.create_task(desk.check(basic(f"c{n}", f"s{n}"))) for n in range(30)]
        await asyncio.wait(jobs)
        busy = [job for job in jobs if isinstance(fault := job.exception(), NoIdentity) and fault.code == "busy"]
        assert len(busy) == 30 - 10 - scrypt_module.THREADS
        assert all(job.result().proof == "secret" for job in jobs if job not in busy)

    run(story())


def test_a_door_that_stops_refuses_what_waits(desk: Desk) -> None:
    async def story() -> None:
        jobs = [asyncio.create_task(desk.check(basic("a", f"guess {n}"))) for n in range(5)]
        await asyncio.sleep(0)
        desk.identify.close()
        await asyncio.wait(jobs)
        assert {fault.code for job in jobs if isinstance(fault := job.exception(), NoIdentity)} <= {"unready", "credential"}
        assert any(isinstance(fault := job.exception(), NoIdentity) and fault.code == "unready" for job in jobs)

    run(story())


def test_who_hangs_up_takes_nobody_elses_answer(desk: Desk) -> None:
    async def story() -> None:
        first = asyncio.create_task(desk.check(basic("a", "right")))
        second = asyncio.create_task(desk.check(basic("a", "right")))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).agent == "a"

    run(story())


def test_what_is_remembered_is_bounded_and_what_is_used_stays(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 8)

    async def story() -> None:
        used = basic("a", "right")
        await desk.check(used)
        for number in range(100):
            await desk.check(basic(f"a+{number}", "right"))
            assert desk.known(used) is not None
        assert desk.known(basic("a+0", "right")) is None
        assert len(desk.identify._new) + len(desk.identify._old) <= 16

    assert REMEMBERED > 1_000
    run(story())


# -- tokens --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [ED, EC])
def test_a_token_is_known_again_until_it_has_expired(desk: Desk, key: Any) -> None:
    async def story() -> None:
        text = token(claims(sub="alice", act={"sub": "r-17"}, exp=NOW_S + 10), key=key)
        value = b"Bearer " + text.encode()
        made = await desk.check(value)
        assert (made.agent, made.chain.root, made.proof, made.issuer) == ("a", 'User::"alice"', "jws", ISSUER)
        assert made.token == made.credential == hashlib.sha256(text.encode()).hexdigest()
        assert bool(made.twin) == (key is EC)
        assert (made.until_s, made.issued_s) == (NOW_S + 10, NOW_S - 5)
        assert desk.known(value) is made
        desk.now += 9.9
        assert desk.known(value) is made
        desk.now += 0.1
        assert desk.known(value) is None
        assert not desk.identify.still(made)
        assert await desk.code(value) == ("token-expired", "")

    run(story())


def test_a_token_in_the_place_of_a_secret_names_its_agent(desk: Desk) -> None:
    async def story() -> None:
        made = await desk.check(basic("a+s", token()))
        assert (made.agent, made.session, made.proof) == ("a", "s", "jws")
        assert await desk.code(basic("b", token())) == ("token-agent", "b")
        assert await desk.code(basic("nobody", token())) == ("token-agent", "nobody")

    run(story())


def test_a_token_that_lasts_is_verified_again_after_a_while(desk: Desk) -> None:
    async def story() -> None:
        value = b"Bearer " + token(claims(exp=NOW_S + 86_400)).encode()
        await desk.check(value)
        desk.now += TOKEN_S
        assert desk.known(value) is None
        assert (await desk.check(value)).agent == "a"

    run(story())


def test_the_twin_of_a_token_is_another_credential_with_the_same_two_hashes(desk: Desk) -> None:
    async def story() -> None:
        text = token(key=EC)
        one = await desk.check(b"Bearer " + text.encode())
        two = await desk.check(b"Bearer " + twin_of(text).encode())
        assert {one.token, one.twin} == {two.token, two.twin}
        assert one.token != two.token

    run(story())


def test_a_token_of_an_issuer_that_is_not_configured_is_refused(desk: Desk) -> None:
    async def story() -> None:
        assert await desk.code(b"Bearer " + token(claims(iss="https://x.example")).encode()) == ("token-issuer", "")
        assert await desk.code(b"Bearer " + token(key=Ed25519Key("stranger")).encode()) == ("token-key", "")
        assert await desk.code(b"Bearer x") == ("token-form", "")

    run(story())


def test_a_key_that_is_taken_away_ends_its_tokens(desk: Desk) -> None:
    async def story() -> None:
        value = b"Bearer " + token().encode()
        made = await desk.check(value)
        other = await desk.check(b"Bearer " + token(key=EC).encode())
        desk.jwks.write_bytes(jwks(EC))
        desk.identify.look()
        assert desk.known(value) is None
        assert (desk.identify.still(made), desk.identify.still(other)) == (False, True)
        assert await desk.code(value) == ("token-key", "")

    run(story())


def test_a_subject_that_is_taken_away_ends_its_tokens(desk: Desk) -> None:
    async def story() -> None:
        acts = await desk.check(b"Bearer " + token(claims(sub="alice", act={"sub": "r-17"})).encode())
        handed_on = await desk.check(b"Bearer " + token(claims(sub="x", act={"sub": "r-17", "act": {"sub": "p-3"}})).encode())
        desk.put("b", "other")
        assert (desk.identify.still(acts), desk.identify.still(handed_on)) == (True, False)
        desk.put("a", "new secret", "r-17")
        assert desk.identify.still(acts), "a token is not the secret's"

    run(story())


def test_a_key_file_that_cannot_be_read_keeps_its_keys_for_a_moment_and_no_longer(desk: Desk) -> None:
    async def story() -> None:
        value = b"Bearer " + token().encode()
        made = await desk.check(value)
        desk.jwks.write_bytes(jwks(ED)[:20])
        desk.identify.look()
        assert desk.known(value) is made
        assert desk.identify.faults[0].startswith(f"{desk.jwks}: is no key set")
        desk.mono += KEEPS_S
        desk.identify.look()
        assert desk.known(value) is None
        assert not desk.identify.still(made)
        assert await desk.code(value) == ("token-key", "")
        desk.jwks.unlink()
        desk.identify.look()
        desk.jwks.write_bytes(jwks(ED))
        desk.identify.look()
        assert (await desk.check(value)).agent == "a"
        assert desk.identify.faults == []

    run(story())


@pytest.mark.parametrize("data", [None, b"{}", json.dumps({"keys": [{**ED.jwk(), "d": "x"}]}).encode()])
def test_a_door_does_not_begin_with_less_trust_than_was_meant(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "keys.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(OperatorFault, match=r"keys\.json: "):
        Identify(tmp_path / "agents.json", [Issuer(url=ISSUER, audience=AUDIENCE, jwks_file=str(path))])


def test_no_secret_or_token_stays_in_memory(desk: Desk) -> None:
    async def story() -> None:
        await desk.check(basic("a", "right"))
        await desk.check(b"Bearer " + token().encode())
        held = repr([desk.identify._new, desk.identify._old, desk.identify._right, vars(desk.identify._scrypt)])
        assert "right" not in held
        assert token() not in held
        assert basic("a", "right").decode() not in held

    run(story())


# -- the agents file -----------------------------------------------------------------------------------------------------


def test_before_the_agents_are_there_nobody_can_be_known(tmp_path: Path) -> None:
    async def story() -> None:
        identify = Identify(tmp_path / "agents.json", [])
        assert not identify.refresh()
        with pytest.raises(NoIdentity) as caught:
            await identify.check([(FIELD, basic("a", "x"))])
        assert (caught.value.code, caught.value.status) == ("unready", 503)
        assert identify.fault == f"{tmp_path / 'agents.json'}: cannot be read: no such file or directory"
        identify.close()

    run(story())


def test_a_file_that_is_not_whole_makes_everybody_unknown_until_it_is(desk: Desk) -> None:
    async def story() -> None:
        value = basic("a", "right")
        made = await desk.check(value)
        whole = desk.path.read_bytes()
        desk.path.write_bytes(whole[:-9])
        assert not desk.identify.refresh()
        assert not desk.identify.refresh()
        assert desk.known(value) is None
        assert not desk.identify.still(made)
        with pytest.raises(NoIdentity, match="does not know the agents yet"):
            await desk.check(value)
        desk.path.write_bytes(whole)
        assert desk.identify.refresh()
        assert (await desk.check(value)).agent == "a"

    run(story())


def test_a_file_that_is_as_it_was_is_not_read_again(desk: Desk) -> None:
    async def story() -> None:
        value = basic("a", "right")
        made = await desk.check(value)
        before = desk.identify.agents
        assert desk.identify.refresh()
        assert desk.identify.agents is before
        assert desk.known(value) is made

    run(story())
