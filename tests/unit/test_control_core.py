"""The log of control: what each request makes, what it refuses, and that its digest is that of whoever follows it."""

import re
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.control import EXPIRED_MAX, Already, Change, Log
from pipeline.core.requests import FIELDS, INTERNAL, ITEMS_MAX
from schemas.control import POLICY, exception_name, key_id_of
from schemas.errors import OperatorFault
from schemas.follower import Beat, Follower

NOW = 1_700_000_000_000_000_000
SECRET = f"scrypt$16384$8$1${'A' * 24}${'B' * 44}"
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = KEY.public_key().public_bytes_raw().hex()
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32).public_key().public_bytes_raw().hex()
KEY_ID = key_id_of(bytes.fromhex(PUBLIC))


def make(log: Log, do: str, *, now_ns: int = NOW, **fields: Any) -> Change:
    change = log.change({"do": do, **fields}, now_ns=now_ns, actor="uid:test")
    log.apply(change)
    return change


def begun(**options: Any) -> Log:
    log = Log(**options)
    make(log, "key-rotate", public=PUBLIC)
    return log


def revoked(log: Log) -> set[str]:
    return {entry.name for entry in log.entries("revocation")}


def policy(log: Log, digest: str) -> None:
    make(log, "policy", digest=digest, bytes=10, packed=9, chunks=1, policies=1)


def test_a_revocation_has_one_spelling_a_reason_and_an_end() -> None:
    log = begun()
    change = make(log, "revoke", kind="destination", name="Evil.EXAMPLE.", reason="exfiltration", for_s=60)
    assert [entry.key for entry in change.entries] == ["revocation/destination:evil.example"]
    assert change.entries[0].epoch == 2
    assert change.result == {"selector": "destination:evil.example", "expires": NOW // 10**9 + 60}
    assert change.entries[0].value == {
        "kind": "destination", "name": "evil.example", "cascade": False, "reason": "exfiltration", "not_before": 0,
        "expires": NOW // 10**9 + 60,
    }  # fmt: skip


def test_a_token_never_enters_the_log() -> None:
    log = begun()
    make(log, "revoke", kind="token", name="very-secret-token", reason="leak")
    assert "very-secret-token" not in repr(log.entries())


def test_what_was_revoked_with_cascade_is_lifted_with_cascade() -> None:
    log = begun()
    make(log, "revoke", kind="agent", name="x", cascade=True, reason="leak")
    with pytest.raises(OperatorFault, match="`agent:x` is not revoked"):
        make(log, "unrevoke", kind="agent", name="x")
    make(log, "unrevoke", kind="agent", name="x", cascade=True)
    assert revoked(log) == set()


def test_a_removed_agent_is_revoked_everywhere_until_it_is_added_again() -> None:
    log = begun()
    make(log, "agent-add", name="x", owner="o", secret=SECRET)
    change = make(log, "agent-remove", name="x")
    assert [(entry.epoch, entry.key, entry.value is None) for entry in change.entries] == [
        (3, "agent/x", True), (4, "revocation/agent*:x", False)
    ]  # fmt: skip
    again = make(log, "agent-add", name="x", owner="o", secret=SECRET)
    assert [(entry.key, entry.value is None) for entry in again.entries] == [("agent/x", False), ("revocation/agent*:x", True)]


def test_adding_an_agent_does_not_lift_what_an_operator_revoked() -> None:
    log = begun()
    make(log, "revoke", kind="agent", name="x", cascade=True, reason="leak")
    make(log, "agent-add", name="x", owner="o", secret=SECRET)
    assert revoked(log) == {"agent*:x"}


def test_an_outside_identity_belongs_to_one_agent_at_a_time() -> None:
    log = begun()
    who: dict[str, Any] = {"owner": "o", "secret": SECRET, "subs": [["https://idp", "7"]], "spiffe": ["spiffe://d/x"]}
    make(log, "agent-add", name="x", **who)
    with pytest.raises(OperatorFault, match="agent `x` already has the outside identity `https://idp 7`"):
        make(log, "agent-add", name="y", **who)
    make(log, "agent-remove", name="x")
    make(log, "agent-add", name="y", **who)


def test_a_new_credential_keeps_everything_else() -> None:
    log = begun()
    make(log, "agent-add", name="x", owner="o", secret=SECRET, subs=[["https://idp", "7"]])
    other = SECRET.replace("B", "C")
    make(log, "agent-rotate", name="x", secret=other)
    entry = log.get("agent/x")
    assert entry is not None
    assert entry.value == {"owner": "o", "secret": other, "subs": [["https://idp", "7"]], "spiffe": []}


def test_revocations_end_when_their_time_has_come_and_not_before() -> None:
    log = begun()
    make(log, "revoke", kind="agent", name="a", reason="r", for_s=10)
    make(log, "revoke", kind="agent", name="b", reason="r", for_s=20)
    make(log, "revoke", kind="agent", name="c", reason="r")
    assert log.expired(NOW + 10 * 10**9 - 1) is None
    change = log.expired(NOW + 10 * 10**9)
    assert change is not None
    assert [entry.key for entry in change.entries] == ["revocation/agent:a"]
    assert log.expired(NOW + 10 * 10**9) == change, "what was not made is still due"
    log.apply(change)
    assert log.expired(NOW + 10 * 10**9) is None
    assert log.next_expiry_s() == NOW // 10**9 + 20


def test_a_revocation_that_was_renewed_ends_when_the_new_one_does() -> None:
    log = begun()
    make(log, "revoke", kind="agent", name="a", reason="r", for_s=10)
    make(log, "revoke", kind="agent", name="a", reason="r", for_s=100)
    assert log.expired(NOW + 50 * 10**9) is None
    make(log, "unrevoke", kind="agent", name="a")
    assert log.expired(NOW + 500 * 10**9) is None
    assert log.next_expiry_s() == 0


def exception(**given: Any) -> dict[str, Any]:
    """What says that leaks of one agent to one domain are false for a minute, but for what is given."""
    fields = {"finding": "0" * 32, "detector": "leak", "subject": "agent=x domain=cdn.example", "owner": "ops", "for_s": 60}
    return fields | given


def test_an_exception_has_an_owner_and_ends_by_an_entry_of_control() -> None:
    log = begun()
    change = make(log, "exception-add", **exception(reason="a package index"))
    name = exception_name("leak", "agent=x domain=cdn.example")
    assert [(entry.key, entry.value) for entry in change.entries] == [
        (f"exception/{name}", {
            "finding": "0" * 32, "detector": "leak", "subject": "agent=x domain=cdn.example", "owner": "ops",
            "reason": "a package index", "expires": NOW // 10**9 + 60,
        })
    ]  # fmt: skip
    assert change.result == {"exception": name, "expires": NOW // 10**9 + 60}
    assert log.next_expiry_s() == NOW // 10**9 + 60
    assert log.expired(NOW + 59 * 10**9) is None
    over = log.expired(NOW + 60 * 10**9)
    assert over is not None
    log.apply(over)
    assert [(entry.key, entry.value, entry.actor) for entry in over.entries] == [(f"exception/{name}", None, "control")]
    assert log.entries("exception") == []


def test_an_exception_that_is_said_again_takes_the_place_of_the_one_before() -> None:
    log = begun()
    make(log, "exception-add", **exception())
    make(log, "exception-add", **exception(finding="f" * 32, owner="other", for_s=600))
    make(log, "exception-add", **exception(subject="agent=y"))
    assert [entry.value and entry.value["owner"] for entry in log.entries("exception")] == ["other", "ops"]
    over = log.expired(NOW + 61 * 10**9)
    assert over is not None
    assert len(over.entries) == 1, "of the first, only the new end counts"
    make(log, "exception-remove", name=exception_name("leak", "agent=x domain=cdn.example"))
    with pytest.raises(OperatorFault, match="there is no exception"):
        make(log, "exception-remove", name="0" * 32)


def test_what_may_only_be_new_never_replaces_what_somebody_has_revoked() -> None:
    log = begun()
    make(log, "revoke", kind="agent", name="x", reason="by hand")
    with pytest.raises(Already, match="`agent:x` is revoked already, as epoch 2"):
        make(log, "revoke", kind="agent", name="x", reason="by a rule", for_s=60, only_new=True)
    make(log, "revoke", kind="agent", name="x", reason="by a rule", for_s=60, cascade=True, only_new=True)
    assert revoked(log) == {"agent:x", "agent*:x"}


def test_no_change_ends_more_revocations_than_its_limit() -> None:
    log = begun()
    for part in range(2):
        items = [{"kind": "session", "name": f"{part}-{n}", "reason": "r", "for_s": 1} for n in range(ITEMS_MAX)]
        make(log, "revoke-many", items=items)
    sizes = []
    while (change := log.expired(NOW + 10**10)) is not None:
        log.apply(change)
        sizes.append(len(change.entries))
    assert sizes == [EXPIRED_MAX, EXPIRED_MAX]


def test_a_rollback_returns_to_the_set_before_and_back() -> None:
    log = begun()
    with pytest.raises(OperatorFault, match="no policy set before"):
        make(log, "policy-rollback")
    policy(log, "a" * 64)
    policy(log, "b" * 64)
    assert make(log, "policy-rollback").result == {"digest": "a" * 64, "from": "b" * 64}
    assert log.files_digest == "b" * 64, "the files are not acted on again before somebody edits them"
    assert make(log, "policy-rollback").result == {"digest": "b" * 64, "from": "a" * 64}
    entry = log.get(POLICY)
    assert entry is not None
    assert (entry.value or {})["origin"] == "rollback"


def test_a_key_that_was_taken_from_a_host_is_remembered_until_it_is_given_back() -> None:
    log = begun()
    entries = [*log.entries(), *make(log, "enforcer-add", name="enforce-1", key=OTHER).entries]
    assert not log.was_dropped("enforcer/enforce-1", OTHER)
    entries += make(log, "enforcer-remove", name="enforce-1").entries
    assert log.was_dropped("enforcer/enforce-1", OTHER)
    assert not log.was_dropped("enforcer/enforce-2", OTHER)
    assert Log(entries).was_dropped("enforcer/enforce-1", OTHER)
    make(log, "enforcer-add", name="enforce-1", key=OTHER)
    assert not log.was_dropped("enforcer/enforce-1", OTHER)
    make(log, "enforcer-add", name="enforce-1", key=PUBLIC)
    assert log.was_dropped("enforcer/enforce-1", OTHER)


def test_the_signing_key_cannot_be_retired_and_an_old_one_can() -> None:
    log = begun()
    with pytest.raises(OperatorFault, match="is the one that signs"):
        make(log, "key-retire", key_id=KEY_ID.hex())
    make(log, "key-rotate", public=OTHER)
    make(log, "key-retire", key_id=KEY_ID.hex())
    assert [entry.name for entry in log.entries("key")] == [key_id_of(bytes.fromhex(OTHER)).hex()]


def test_above_the_limit_of_the_embedded_broker_only_what_helps_is_taken() -> None:
    log = begun(live_bytes_max=2_000)
    number, fault = 0, ""
    while not fault:
        try:
            make(log, "revoke", kind="session", name=f"s{number}", reason="r")
            number += 1
        except OperatorFault as caught:
            fault = str(caught)
    assert re.search(r"would have \d+ bytes, limit is 2000 on the embedded broker", fault)
    before = log.epoch
    with pytest.raises(OperatorFault, match="limit is 2000"):
        make(log, "agent-add", name="x", owner="o", secret=SECRET)
    assert log.epoch == before
    make(log, "pause", reason="an incident is never too big")
    make(log, "unrevoke", kind="session", name="s0")
    assert 0 < number < 20


def test_a_refused_request_changes_nothing() -> None:
    log = begun()
    before = log.epoch, log.digest(), log.live_bytes
    items = [{"kind": "agent", "name": "a", "reason": "r"}, {"kind": "agent", "name": "", "reason": "r"}]
    with pytest.raises(OperatorFault, match=r"items\[1\]: agent `` is empty"):
        make(log, "revoke-many", items=items)
    assert (log.epoch, log.digest(), log.live_bytes) == before


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"do": "explode"}, "`explode` is no request"),
    ({"do": "pause"}, "`reason` is not a text"),
    ({"do": "pause", "reason": ""}, "`reason` is empty"),
    ({"do": "pause", "reason": "a\nb"}, "`reason` has a control character"),
    ({"do": "pause", "reason": "x" * 1025}, "`reason` has 1025 bytes, limit is 1024"),
    ({"do": "pause", "reason": "x", "force": True}, "`pause` has no field `force`"),
    ({"do": "resume"}, "nothing is paused"),
    ({"do": "revoke", "kind": "planet", "name": "x", "reason": "r"}, "`planet` cannot be revoked"),
    ({"do": "revoke", "kind": "agent", "name": 7, "reason": "r"}, "`name` is not a text"),
    ({"do": "revoke", "kind": "agent", "name": "x", "reason": "r", "for_s": -1}, "`for_s` is not a whole number"),
    ({"do": "revoke", "kind": "agent", "name": "x", "reason": "r", "for_s": True}, "`for_s` is not a whole number"),
    ({"do": "revoke", "kind": "agent", "name": "x", "reason": "r", "cascade": 1}, "`cascade` is not true or false"),
    ({"do": "exception-add", **exception(detector="leek")}, "`leek` is no detector, known are first-seen,"),
    ({"do": "exception-add", **exception(finding="x")}, "`finding` is not an id of 32 hex digits"),
    ({"do": "exception-add", **exception(owner="")}, "`owner` is empty"),
    ({"do": "exception-add", **exception(subject="")}, "`subject` is empty"),
    ({"do": "exception-add", **exception(for_s=0)}, "`for_s` is not a whole number from 1 to 31622400: an exception ends"),
    ({"do": "exception-add", **exception(for_s=31622401)}, "`for_s` is not a whole number from 0 to 31622400"),
    ({"do": "exception-remove", "name": "../x"}, "`name` is not an id of 32 hex digits"),
    ({"do": "revoke-many", "items": []}, "`items` has 0 revocations"),
    ({"do": "revoke-many", "items": [{"do": "resume"}]}, "`items` is not an array of revocations"),
    ({"do": "agent-remove", "name": "nobody"}, "there is no agent `nobody`"),
    ({"do": "agent-add", "name": "x", "owner": "o", "secret": "plain text"}, "`secret` is not `scrypt"),
    ({"do": "agent-add", "name": "x", "owner": "o", "secret": SECRET, "subs": [["a"]]}, "`subs` is not an array"),
    ({"do": "agent-add", "name": "x", "owner": "o", "secret": SECRET, "spiffe": ["http://x"]}, "is no spiffe id"),
    ({"do": "enforcer-add", "name": "../x", "key": OTHER}, "is no name of a host or worker"),
    ({"do": "enforcer-add", "name": "enforce-1", "key": "00"}, "`key` is not an Ed25519 public key"),
    ({"do": "worker-remove", "name": "work-1"}, "there is no worker `work-1`"),
    ({"do": "key-retire", "key_id": "00"}, "there is no control key `00`"),
]


@pytest.mark.parametrize(("request_", "message"), REFUSED)
def test_what_cannot_be_is_refused_by_name(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(OperatorFault) as caught:
        begun().change(request_, now_ns=NOW, actor="uid:test")
    assert message in str(caught.value)
    assert "plain text" not in str(caught.value)


def test_every_request_is_known_to_the_log() -> None:
    """A request that is listed and that nobody handles would fall through to another's code."""
    known = {"forget", "policy"}
    assert known == INTERNAL
    for do in FIELDS:
        with pytest.raises((OperatorFault, KeyError)):
            Log().change({"do": do, "unknown": 1}, now_ns=NOW, actor="t")


names = st.sampled_from(["a", "b", "c"])
steps = st.one_of(
    st.tuples(st.just("revoke"), names, st.integers(0, 2)), st.tuples(st.just("unrevoke"), names, st.just(0)),
    st.tuples(st.just("agent-add"), names, st.just(0)), st.tuples(st.just("agent-remove"), names, st.just(0)),
    st.tuples(st.just("pause"), names, st.just(0)), st.tuples(st.just("resume"), names, st.just(0)),
    st.tuples(st.just("policy"), names, st.just(0)), st.tuples(st.just("policy-rollback"), names, st.just(0)),
    st.tuples(st.just("exception-add"), names, st.integers(1, 3)),
    st.tuples(st.just("wait"), names, st.integers(1, 3)),
)  # fmt: skip


def asked(do: str, name: str, number: int) -> dict[str, Any]:
    match do:
        case "revoke":
            return {"do": do, "kind": "agent", "name": name, "reason": "r", "cascade": number == 2, "for_s": number}
        case "exception-add":
            return {"do": do, **exception(subject=name, for_s=number)}
        case "unrevoke":
            return {"do": do, "kind": "agent", "name": name}
        case "agent-add":
            return {"do": do, "name": name, "owner": "o", "secret": SECRET}
        case "agent-remove":
            return {"do": do, "name": name}
        case "pause":
            return {"do": do, "reason": name}
        case "policy":
            return {"do": do, "digest": name * 64, "bytes": 1, "packed": 1, "chunks": 1, "policies": 1}
    return {"do": do}


@settings(max_examples=150)
@given(st.lists(steps, max_size=25))
def test_who_follows_the_entries_has_the_digest_of_the_log(story: list[tuple[str, str, int]]) -> None:
    log = begun()
    entries = list(log.entries())
    now = NOW
    for do, name, number in story:
        now += 10**9 * (number if do == "wait" else 0)
        try:
            change = log.expired(now) if do == "wait" else log.change(asked(do, name, number), now_ns=now, actor="t")
        except OperatorFault:
            continue
        if change is not None:
            log.apply(change)
            entries += change.entries
    assert [entry.epoch for entry in entries] == list(range(1, len(entries) + 1))
    follower = Follower({KEY_ID: bytes.fromhex(PUBLIC)})
    follower.begin()
    for entry in entries:
        follower.take(entry.encode(KEY_ID, KEY.sign), at_end=False)
    beat = follower.take(log.heartbeat(1, now).encode(KEY_ID, KEY.sign), at_end=True)
    assert isinstance(beat, Beat)
    assert beat.whole
    assert follower.entries() == log.entries()
    again = Log(entries)
    assert (again.digest(), again.live_bytes, again.epoch) == (log.digest(), log.live_bytes, log.epoch)
    assert again.next_expiry_s() == log.next_expiry_s()
