"""What a control entry is: one form, one spelling, and whatever else comes is refused by name and does no harm."""

import hashlib
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.control import EPOCH_MAX, HEAD_BYTES, KINDS, MAGIC, Entry, Sealed, key_id_of, leaf_of, parse_entry, seal
from schemas.errors import FrameFault
from schemas.limits import ENTRY_BYTES_MAX, ENTRY_KEY_BYTES_MAX
from tests.support.entries import CONTROL, NEXT, NOW_NS, Journal, damaged, revocation

REASONS = {"form", "limit", "tenant"}
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8,
)  # fmt: skip
keys = st.one_of(
    st.sampled_from(["pause", "heartbeat", "policy/main"]),
    st.tuples(st.sampled_from(["agent", "revocation", "enforcer", "worker", "key"]), texts.filter(bool)).map("/".join),
)
entries = st.builds(
    Entry, epoch=st.integers(0, EPOCH_MAX), key=keys, time_ns=st.integers(0, EPOCH_MAX), actor=texts,
    value=st.none() | st.dictionaries(texts, values, max_size=4),
)  # fmt: skip


def made(**more: Any) -> Entry:
    fields: dict[str, Any] = {"epoch": 7, "key": "agent/x", "time_ns": NOW_NS, "actor": "uid:a", "value": {"owner": "o"}}
    return Entry(**(fields | more))


def sealed(payload: bytes) -> bytes:
    return seal(payload, CONTROL.key_id, CONTROL.sign)


def wire(**more: Any) -> bytes:
    return made(**more).encode(CONTROL.key_id, CONTROL.sign)


def refused(data: bytes) -> FrameFault:
    with pytest.raises(FrameFault) as found:
        parse_entry(data)
    return found.value


@given(entries)
def test_reading_undoes_writing(entry: Entry) -> None:
    found = parse_entry(entry.encode(CONTROL.key_id, CONTROL.sign))
    found.verify(CONTROL.verify)
    assert (found.entry, found.key_id, found.payload) == (entry, CONTROL.key_id, entry.payload())
    assert found.leaf == leaf_of(entry.payload())
    assert found.entry.kind in KINDS


def test_another_key_signs_the_same_entry_again_and_it_stays_the_same() -> None:
    entry = made()
    one, two = (parse_entry(entry.encode(key.key_id, key.sign)) for key in (CONTROL, NEXT))
    assert (one.entry, one.leaf, one.payload) == (two.entry, two.leaf, two.payload)
    assert one.key_id != two.key_id


def test_a_signature_of_another_key_is_no_signature() -> None:
    found = parse_entry(made().encode(CONTROL.key_id, NEXT.sign))
    with pytest.raises(FrameFault, match=r"entry `agent/x` is not signed by key [0-9a-f]{16}$") as fault:
        found.verify(CONTROL.verify)
    assert fault.value.reason == "signature"


@pytest.mark.parametrize("at", range(HEAD_BYTES + 20))
def test_no_bit_of_a_message_can_change_unseen(at: int) -> None:
    data = wire()
    for bit in range(8):
        changed = data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
        found = outcome(changed)
        if isinstance(found, FrameFault):
            assert found.reason in REASONS
        elif found.key_id == CONTROL.key_id:  # else nobody has such a key
            with pytest.raises(FrameFault, match="is not signed by"):
                found.verify(CONTROL.verify)


FORMS = {
    "empty": b"",
    "only a head": b"x" * HEAD_BYTES,
    "another magic": b"WLC2" + wire()[4:],
    "no JSON": sealed(b"{"),
    "no object": sealed(b"[]"),
    "a text": sealed(b'"doors"'),
    "a field less": sealed(json.dumps({"tenant": "default", "epoch": 1}).encode()),
    "a field twice": sealed(made().payload().replace(b'"epoch":7', b'"epoch":7,"epoch":7')),
    "a field more": sealed(made().payload()[:-1] + b',"zz":1}'),
    "spaces": sealed(made().payload().replace(b",", b", ", 1)),
    "a line end behind it": sealed(made().payload() + b"\n"),
    "escapes that are not needed": sealed(made().payload().replace(b"agent/x", b"agent/\\u0078")),
    "another order": sealed(b'{"value":null,"actor":"","epoch":1,"key":"pause","tenant":"default","time":1}'),
    "a byte order mark": sealed(b"\xef\xbb\xbf" + made().payload()),
    "UTF-16": sealed(made().payload().decode().encode("utf-16-le")),
    "UTF-32": sealed(made().payload().decode().encode("utf-32")),
    "no UTF-8": sealed(made().payload().replace(b"agent/x", b"agent/\xff")),
    "a lone surrogate": sealed(made().payload().replace(b"agent/x", b"agent/\\ud800")),
    "a surrogate as UTF-8": sealed(made().payload().replace(b"agent/x", b"agent/\xed\xa0\x80")),
    "no number": sealed(made().payload().replace(b'"owner":"o"', b'"owner":NaN')),
    "without end": sealed(made().payload().replace(b'"owner":"o"', b'"owner":Infinity')),
    "too large a number": sealed(made().payload().replace(b'"owner":"o"', b'"owner":1e999')),
    "too many digits": sealed(made().payload().replace(b'"epoch":7', b'"epoch":' + b"7" * 5000)),
    "too deep": sealed(made().payload().replace(b'"o"', b"[" * 20_000 + b"]" * 20_000)),
    "epoch is true": sealed(made().payload().replace(b'"epoch":7', b'"epoch":true')),
    "epoch is 7.0": sealed(made().payload().replace(b'"epoch":7', b'"epoch":7.0')),
    "epoch below 0": sealed(made(epoch=-1).payload()),
    "epoch above the last": sealed(made(epoch=EPOCH_MAX + 1).payload()),
    "time below 0": sealed(made(time_ns=-1).payload()),
    "time that no column holds": sealed(made(time_ns=1 << 63).payload()),
    "actor is no text": sealed(made().payload().replace(b'"uid:a"', b"7")),
    "value is a list": sealed(made().payload().replace(b'{"owner":"o"}', b"[]")),
    "value is a text": sealed(made().payload().replace(b'{"owner":"o"}', b'"o"')),
    "an unknown kind": wire(key="grant/x"),
    "no kind": wire(key="/x"),
    "an empty key": wire(key=""),
    "a kind without a name": wire(key="agent/"),
    "a kind alone": wire(key="revocation"),
    "a word with a name": wire(key="pause/x"),
    "a heartbeat with a name": wire(key="heartbeat/x"),
    "a key that is too long": wire(key="agent/" + "x" * (ENTRY_KEY_BYTES_MAX - 5)),
    "a key that is too long in bytes": wire(key="agent/" + "é" * (ENTRY_KEY_BYTES_MAX // 2)),
}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_refused_for_its_form(form: str) -> None:
    fault = refused(FORMS[form])
    assert fault.reason == "form"
    assert str(fault).isprintable()


def test_a_key_as_long_as_may_be_is_read() -> None:
    assert parse_entry(wire(key="agent/" + "x" * (ENTRY_KEY_BYTES_MAX - 6))).entry.name.startswith("xxx")


def test_a_message_above_the_limit_is_refused_before_it_is_read() -> None:
    room = ENTRY_BYTES_MAX - len(wire(value={"owner": ""}))
    assert parse_entry(wire(value={"owner": "o" * room})).entry.epoch == 7
    fault = refused(wire(value={"owner": "o" * (room + 1)}))
    assert fault.reason == "limit"
    assert str(fault) == f"a control entry has {ENTRY_BYTES_MAX + 1} bytes, limit is {ENTRY_BYTES_MAX}"


def test_another_tenant_is_refused_by_name() -> None:
    fault = refused(wire(tenant="other\n"))
    assert fault.reason == "tenant"
    assert "`other\\n`" in str(fault)


def test_what_a_message_says_is_one_line_in_a_refusal() -> None:
    """Anybody who can write to the topic chooses the key: it must not write lines of its own into the log."""
    for key in ("agent/\nWARNING all is well", "grant/\x1b[2J", "nobody\r"):
        with pytest.raises(FrameFault) as fault:
            parse_entry(wire(key=key)).verify(NEXT.verify)
        assert str(fault.value).isprintable()


def test_an_entry_that_no_json_holds_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        made(value={"owner": float("nan")}).payload()


@pytest.mark.parametrize("block", range(8))
def test_changed_bytes_are_refused_by_name_or_are_an_entry_in_its_one_spelling(block: int) -> None:
    journal = Journal()
    good = [journal.put("agent/x", {"owner": "é", "subs": [["i", "s"]], "spiffe": []}), journal.beat(), journal.remove("pause"),
            journal.put("revocation/agent:x", revocation("x"))]  # fmt: skip
    read = 0
    for seed in range(block * 2_000, (block + 1) * 2_000):
        rng = random.Random(seed)
        data = rng.choice(good)
        head, body = data[:HEAD_BYTES], data[HEAD_BYTES:]
        for _ in range(rng.randint(1, 3)):
            body = damaged(body, rng.randrange)
        if rng.random() < 0.2:
            head = damaged(head, rng.randrange)
        read += look(head + body, seed)
        look(rng.randbytes(rng.randrange(200)), seed)
        look(MAGIC + rng.randbytes(HEAD_BYTES - 4) + rng.randbytes(rng.randrange(1, 40)), seed)
    assert 20 < read < 1_000, "both ends must come up"


def look(data: bytes, seed: int) -> bool:
    """Whether it is an entry."""
    found = outcome(data)
    if isinstance(found, FrameFault):
        assert found.reason in REASONS, seed
        assert str(found).isprintable(), seed
        return False
    assert found.entry.payload() == found.payload == data[HEAD_BYTES:], seed
    return True


def outcome(data: bytes) -> Sealed | FrameFault:
    try:
        return parse_entry(data)
    except FrameFault as fault:
        return fault


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    look(data, 0)
    look(MAGIC + bytes(HEAD_BYTES - 4) + data, 0)


def test_a_key_is_called_by_its_hash() -> None:
    assert key_id_of(CONTROL.public).hex() == hashlib.sha256(CONTROL.public).hexdigest()[:16]
