"""What an acknowledgement is: a host's signed word in a form that whoever stores it can hold, and nothing else."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.ack import HEAD_BYTES, MAGIC, STATES, Ack, DoorAck, parse_ack
from schemas.control import EPOCH_MAX, Verify
from schemas.errors import FrameFault
from schemas.limits import ACK_BYTES_MAX, DOORS_MAX
from tests.support.entries import STRANGER, Signer, damaged, make_ack

HOST = Signer("enforce-1")
REASONS = {"form", "limit", "tenant", "key", "signature"}

numbers = st.integers(0, EPOCH_MAX)
digests = st.just("") | st.binary(min_size=32, max_size=32).map(bytes.hex)
boots = st.binary(min_size=8, max_size=8).map(bytes.hex)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
doors = st.builds(DoorAck, boot=boots, epoch=numbers, policy_digest=digests, applied_ns=numbers)
acks = st.builds(
    Ack, host=st.just("enforce-1"), boot=boots, state=st.sampled_from(STATES), why=texts, epoch=numbers, counter=numbers,
    policy_digest=digests, applied_ns=numbers, said_ns=numbers, lag_records=numbers,
    doors=st.lists(doors, max_size=3).map(tuple), tenant=st.just("default"),
)  # fmt: skip


def key_of(host: str) -> Verify | None:
    return HOST.verify if host == "enforce-1" else None


def refused(data: bytes, key: Callable[[str], Verify | None] = key_of) -> FrameFault:
    with pytest.raises(FrameFault) as found:
        parse_ack(data, key)
    assert str(found.value).isprintable()
    return found.value


def said(**more: Any) -> bytes:
    """A signed message with some fields of its own; None takes a field away."""
    fields = json.loads(make_ack().encode(HOST.sign)[HEAD_BYTES:]) | more
    return signed(json.dumps({name: value for name, value in fields.items() if value is not ...}).encode())


def signed(payload: bytes) -> bytes:
    return MAGIC + HOST.sign(MAGIC + payload) + payload


@given(acks)
def test_reading_undoes_writing(ack: Ack) -> None:
    assert parse_ack(ack.encode(HOST.sign), key_of) == ack


def test_as_many_doors_as_may_be_fit_and_one_more_is_refused() -> None:
    full = DoorAck(boot="f" * 16, epoch=EPOCH_MAX, policy_digest="f" * 64, applied_ns=EPOCH_MAX)
    ack = replace(make_ack(), doors=(full,) * DOORS_MAX, host="enforce-1", why="x" * 4096)
    assert len(ack.encode(HOST.sign)) < ACK_BYTES_MAX
    assert len(parse_ack(ack.encode(HOST.sign), key_of).doors) == DOORS_MAX
    assert refused(replace(ack, doors=(full,) * (DOORS_MAX + 1)).encode(HOST.sign)).reason == "form"


def test_a_message_above_the_limit_is_refused_before_it_is_read() -> None:
    fault = refused(replace(make_ack(), why="x" * ACK_BYTES_MAX).encode(HOST.sign))
    assert fault.reason == "limit"
    assert f"limit is {ACK_BYTES_MAX}" in str(fault)


def test_a_host_that_is_not_registered_is_refused_by_name() -> None:
    fault = refused(replace(make_ack(), host="a\nb").encode(HOST.sign))
    assert (fault.reason, str(fault)) == ("key", "no key is registered for host `a\\nb`")


def test_another_hosts_word_is_no_word_of_this_one() -> None:
    fault = refused(make_ack().encode(STRANGER.sign))
    assert (fault.reason, str(fault)) == ("signature", "an acknowledgement is not signed by host `enforce-1`")


def test_another_tenants_word_is_refused() -> None:
    assert refused(replace(make_ack(), tenant="other").encode(HOST.sign)).reason == "tenant"


DOOR = {"boot": "00000001000000aa", "epoch": 7, "policy_digest": "", "applied_ns": 0}
FORMS: dict[str, bytes] = {
    "empty": b"",
    "only a head": MAGIC + bytes(64),
    "another magic": b"WLA2" + make_ack().encode(HOST.sign)[4:],
    "no JSON": signed(b"{"),
    "no object": signed(b"[]"),
    "a text": signed(b'"doors"'),
    "null": signed(b"null"),
    "too deep": signed(b"[" * 60_000),
    "too many digits": signed(b'{"doors":[],"epoch":' + b"7" * 5_000 + b"}"),
    "a field less": said(counter=...),
    "no doors": said(doors=...),
    "a field more": said(zz=1),
    "an unknown state": said(state="happy"),
    "epoch is a text": said(epoch="7"),
    "epoch is true": said(epoch=True),
    "epoch is 7.0": said(epoch=7.0),
    "epoch below 0": said(epoch=-1),
    "epoch that no column holds": said(epoch=1 << 63),
    "a time that no column holds": said(applied_ns=1 << 63),
    "host is null": said(host=None),
    "a host with a lone surrogate": said(host="\ud800"),
    "a why with a lone surrogate": said(why="\udcff"),
    "a boot that is no boot": said(boot="x"),
    "a boot in upper case": said(boot="00000001000000AA"),
    "a digest that is none": said(policy_digest="ab"),
    "doors is an object": said(doors={"a": 1}),
    "doors is a text": said(doors="ab"),
    "doors is a number": said(doors=1),
    "a door is null": said(doors=[None]),
    "a door is a list": said(doors=[[]]),
    "a door lacks a field": said(doors=[{"boot": "00000001000000aa"}]),
    "a door has a field more": said(doors=[DOOR | {"zz": 1}]),
    "a door's boot is no boot": said(doors=[DOOR | {"boot": "g" * 16}]),
    "a door's boot is a number": said(doors=[DOOR | {"boot": 7}]),
    "a door's digest is none": said(doors=[DOOR | {"policy_digest": "ab" * 31}]),
    "a door's epoch below 0": said(doors=[DOOR | {"epoch": -7}]),
}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_refused_for_its_form(form: str) -> None:
    """Also when a registered host signs it: a host that lies may not end whoever reads it."""
    assert refused(FORMS[form]).reason == "form"


def test_no_bit_of_a_message_can_change_unseen() -> None:
    data = make_ack().encode(HOST.sign)
    for at in range(len(data)):
        for bit in range(8):
            refused(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])


@pytest.mark.parametrize("block", range(4))
def test_changed_bytes_are_refused_by_name_or_are_an_acknowledgement(block: int) -> None:
    """Whoever changes them may even sign them again: then they are his word, in a form that can be kept."""
    good = make_ack().encode(HOST.sign)[HEAD_BYTES:]
    read = 0
    for seed in range(block * 3_000, (block + 1) * 3_000):
        rng = random.Random(seed)
        body = good
        for _ in range(rng.randint(1, 3)):
            body = damaged(body, rng.randrange)
        read += look(signed(body), seed)
        assert not look(MAGIC + rng.randbytes(64) + good, seed)
    assert 20 < read < 2_000, "both ends must come up"


def look(data: bytes, seed: int) -> bool:
    """Whether it is an acknowledgement."""
    ack = outcome(data)
    if isinstance(ack, FrameFault):
        assert ack.reason in REASONS, seed
        assert str(ack).isprintable(), seed
        return False
    assert parse_ack(ack.encode(HOST.sign), key_of) == ack, seed
    return True


def outcome(data: bytes) -> Ack | FrameFault:
    try:
        return parse_ack(data, key_of)
    except FrameFault as fault:
        return fault


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    assert not look(data, 0)
    assert not look(MAGIC + bytes(64) + data, 0)
