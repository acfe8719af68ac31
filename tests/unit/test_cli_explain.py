"""What an explanation says, without a store: advice for every reason, revocations, policies, frames of somebody else."""

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.cli import explain, inventory, top
from pipeline.cli.explained import REASONS, Link, advice, asked_later, chain_text, decided_after
from pipeline.cli.policytext import policies_at, scope_text
from pipeline.policy.load import load_bundle
from schemas.bundle import Rule
from schemas.frame import Frame
from schemas.home import Home
from schemas.keys import public_pem, raw_public
from tests.support.frames import BOOT, Host


def call(**fields: Any) -> dict[str, Any]:
    return {
        "verdict": "deny", "reason": "no-permit", "policies": [], "chain": ['User::"u"', 'Agent::"a"'], "address": "",
        "resource": 'Host::"h:443"', "session": "s", "credential": "ab" * 32, "domain": "", "action": "http:GET",
    } | fields  # fmt: skip


@pytest.mark.parametrize("text", ["1234567", "g" * 32, "0" * 33, "", "0x123456", "²" * 8])
def test_a_call_id_is_hex_digits(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no call id: 8 to 32 hex digits"):
        explain.call_digits(text)
    assert explain.call_digits("ABCDEF01") == "abcdef01"


@pytest.mark.parametrize("reason", sorted(REASONS.keys() - {"permit"}))
def test_every_refusal_says_what_would_have_it_allowed(reason: str) -> None:
    assert advice(call(reason=reason), "http:GET", [], [], None)


def test_an_allowed_call_needs_no_advice() -> None:
    assert advice(call(verdict="allow", reason="permit"), "http:GET", [], [], None) == []


def test_a_permit_is_asked_for_just_the_agents_that_lack_it_and_the_action_that_was_asked() -> None:
    links = [Link(uid='Agent::"a"', verdict="allow", reason="permit", policies=("p",)),
             Link(uid='Agent::"b"', verdict="deny", reason="no-permit", policies=())]  # fmt: skip
    lines = advice(call(), "tcp:CONNECT", links, [], None)
    assert lines[1:] == ['  permit (principal == Agent::"b", action == Action::"tcp:CONNECT", resource == Host::"h:443");']


@pytest.mark.parametrize(("fields", "says"), [
    ({"state": "live"}, ["`wardline unrevoke agent a --cascade`, once the reason has gone"]),
    ({"state": "live", "reason": "agent removed"}, ["the agent was removed: `wardline agent add a ...` makes it anew"]),
    ({"state": "lifted", "until": None}, ["agent*:a is lifted since -: try again"]),
])  # fmt: skip
def test_a_revocation_says_how_it_ends(fields: Mapping[str, Any], says: list[str]) -> None:
    one = {"selector": "agent*:a", "kind": "agent", "name": "a", "reason": "r", **fields}
    assert advice(call(reason="revoked"), "http:GET", [], [one], None) == says


def test_the_last_word_with_a_verdict_takes_a_decision_back() -> None:
    first = {"kind": "decision", "verdict": "allow", "reason": "permit", "error": ""}
    end = {"kind": "effect", "verdict": "", "reason": "", "error": ""}
    back = {"kind": "effect", "verdict": "deny", "reason": "no-permit", "error": "tcp:CONNECT: another name"}
    assert decided_after([first, end]) is None
    assert decided_after([first, back]) is back
    assert asked_later(back) == "tcp:CONNECT"
    assert asked_later({**back, "reason": "address", "error": "loopback: 127.0.0.1"}) == ""
    assert asked_later({**back, "error": "no action is named"}) == ""
    assert asked_later(None) == ""


def test_a_chain_says_how_each_edge_is_known() -> None:
    chain = ['User::"u"', 'Agent::"a"', 'Agent::"b"']
    assert chain_text(chain, ["signed"]) == 'User::"u" -(signed)-> Agent::"a" -(not assured)-> Agent::"b"'
    assert chain_text([], []) == ""


# -- frames --------------------------------------------------------------------------------------------------------------


class Registered:
    """A store in which control has registered these keys, and what is none."""

    def __init__(self, *keys: bytes) -> None:
        self._keys = keys

    def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        return [{"key": "no key"}, *({"key": key.hex()} for key in self._keys)]


def verified(
    home: Home, frame: Frame, *, head: bytes | None = None, seq: int = 1, keys: tuple[bytes, ...] = (), **fields: Any
) -> tuple[bool, str]:
    lane = frame.head.lane
    row = {"enforcer": lane.host, "enforcer_boot": lane.host_boot, "partition": lane.partition, "frame_no": frame.head.frame_no,
           "digest": frame.digest.hex()} | fields  # fmt: skip
    store: Any = Registered(*keys)
    return explain._verified(store, home, row, frame.signed + frame.signature if head is None else head, BOOT, seq)


def test_a_frame_is_verified_only_as_its_hosts_own_for_this_record(tmp_path: Path) -> None:
    home, host = Home(tmp_path), Host()
    frame, other = host.frame(), host.frame()
    assert verified(home, frame) == (False, "NOT VERIFIED: no key is known of host enforce-1")
    own, another = raw_public(host.key.public_key()), raw_public(Host().key.public_key())
    assert not verified(home, frame, keys=(another,))[0]
    assert verified(home, frame, keys=(another, own))[1].startswith("signature good, by the key that control registered; ")
    home.trusted("hosts").mkdir(parents=True)
    (home.trusted("hosts") / "enforce-1.pub").write_bytes(public_pem(raw_public(host.key.public_key())))
    good, said = verified(home, frame)
    assert good
    assert said == "signature good, by the key pinned in this home; it covers records 1 to 3 of this door"
    assert not verified(home, frame, seq=4)[0], "a record that it does not cover"
    assert not verified(home, frame, frame_no=2)[0], "the head of another frame"
    assert not verified(home, frame, digest=other.digest.hex())[0]
    assert verified(home, frame, head=b"head") == (False, "NOT VERIFIED: its head is not kept")
    wrong = frame.signed + bytes(64)
    assert not verified(home, frame, head=wrong)[0]
    unsigned = verified(home, frame, head=wrong, digest=hashlib.sha256(wrong).hexdigest())
    assert unsigned == (False, "NOT VERIFIED: the signature is not of host enforce-1")


# -- policies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scope", "text"), [
    ({}, "permit (principal, action, resource);"),
    ({"forbid": True, "principal": ("==", 'Agent::"a"')}, 'forbid (principal == Agent::"a", action, resource);'),
    ({"action": ("in any", 'Action::"x"', 'Action::"y"')},
     'permit (principal, action in [Action::"x", Action::"y"], resource);'),
    ({"resource": ("is in", "Host", 'Domain::"d"')}, 'permit (principal, action, resource is Host in Domain::"d");'),
    ({"resource": ("is", "Host")}, "permit (principal, action, resource is Host);"),
])  # fmt: skip
def test_a_compiled_policy_is_shown_in_cedar(scope: dict[str, Any], text: str) -> None:
    fields: dict[str, Any] = {"id": "p", "forbid": False} | scope
    assert scope_text(Rule(**fields)) == text


def test_the_text_of_a_policy_is_its_own_and_ends_with_its_semicolon(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.policies.mkdir()
    first = '@id("a;b")\n@reason("x ; y")\npermit (principal == Agent::"a;(", action, resource) // not; here\n;'
    (home.policies / "p.cedar").write_text(f"// a comment\n{first}\nforbid (principal, action, resource);\n")
    found = policies_at(home, load_bundle(home.policies).digest)
    one, two = found.text("a;b"), found.text("p.cedar#2")
    assert one is not None
    assert two is not None
    assert (one.text, one.annotations["reason"]) == (first, "x ; y")
    assert one.place.endswith("p.cedar:4:1")
    assert two.text == "forbid (principal, action, resource);"
    assert found.text("none") is None


def test_a_digest_from_a_record_is_never_a_path(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (home.host("h") / "bundle").mkdir(parents=True)
    for digest in ("../" * 21 + "x", "*" * 64, "d" * 63):
        assert policies_at(home, digest).source == ""


# -- inventory and top ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0", "0.1", "3601", "x", "nan", ""])
def test_an_interval_has_bounds(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a number of seconds, 0\.2 to 3600"):
        top.interval(text)


def test_names_that_strangers_wrote_do_not_write_to_the_terminal() -> None:
    row = {"kind": "shadow", "name": "\x1b]0;x\x07", "first_seen": None, "last_seen": None, "failed": 3}
    text = inventory.render([row], ("shadow",), 0)
    assert "\\x1b]0;x\\x07" in text
    assert text.replace("\n", "").isprintable()
    total = {"calls": 30, "denied": 1, "opened": 2}
    moved = {"agent": "[red]\x1b[2J", "resource": 'Host::"\x1b"', "sent": 1, "received": 2, "yes": 0, "reason": "\r", **total}
    shown = top.Snapshot(taken_s=0.0, total=total, agents=[moved], places=[moved], verdicts=[moved],
                         refused=[{"reason": "identity", "what": "\x07", "calls": 1}])  # fmt: skip
    assert top.as_text(shown).replace("\n", "").isprintable()
    console = Console(width=120, force_terminal=True, color_system=None)
    with console.capture() as caught:
        console.print(top.as_tables(shown, "the store\x1b[2J is away"))
    assert "[red]\\x1b[2J" in caught.get(), "it is no markup either"
    assert "\x1b[2J" not in caught.get()
    assert "2.0" in caught.get()
