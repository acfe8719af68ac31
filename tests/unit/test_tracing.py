"""Trace context: what of W3C's level 2 a door continues, and when it begins anew."""

import pytest

from enforcers.core.tracing import RANDOM, SAMPLED, STATE_MEMBERS_MAX, Trace, read_trace, traceparent

MINT = b"m" * 16
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01".encode()
NEW = Trace(MINT, bytes(8), SAMPLED | RANDOM, False)


def read(*parents: bytes, state: tuple[bytes, ...] = ()) -> Trace:
    named = [(b"traceparent", value) for value in parents] + [(b"tracestate", value) for value in state]
    return read_trace([(b"accept", b"*/*"), *named], MINT)


def known(flags: int, keeps_state: bool = False) -> Trace:
    return Trace(bytes.fromhex(TRACE), bytes.fromhex(SPAN), flags, keeps_state)


CONTINUED = {
    "a sampled one": (GOOD, 1),
    "one that is not sampled": (GOOD[:-1] + b"0", 0),
    "one whose id is random": (GOOD[:-1] + b"3", 3),
    "flags that nobody knows are dropped": (GOOD[:-2] + b"ff", 3),
    "space around it": (b" \t" + GOOD + b"\t", 1),
    "a later version": (b"cc" + GOOD[2:], 1),
    "a later version with more behind it": (b"cc" + GOOD[2:] + b"-what-the-future-brings", 1),
    "a later version with an empty rest": (b"cc" + GOOD[2:] + b"-", 1),
}


@pytest.mark.parametrize(("value", "flags"), CONTINUED.values(), ids=CONTINUED.keys())
def test_a_trace_that_is_well_formed_goes_on(value: bytes, flags: int) -> None:
    assert read(value) == known(flags)


BEGUN = {
    "nothing": (),
    "an empty one": (b"",),
    "two that differ": (GOOD, GOOD[:-1] + b"0"),
    "two that agree": (GOOD, GOOD),
    "the version that is none": (b"ff" + GOOD[2:],),
    "a version in one digit": (GOOD[1:],),
    "a version in capitals": (b"CC" + GOOD[2:],),
    "an id in capitals": (GOOD.replace(b"4bf9", b"4BF9"),),
    "an id that is short": (GOOD.replace(b"4bf9", b"4bf"),),
    "an id that is no hexadecimal": (GOOD.replace(b"4bf9", b"4bg9"),),
    "an id of zeros": (b"00-" + b"0" * 32 + GOOD[35:],),
    "a parent of zeros": (GOOD[:36] + b"0" * 16 + GOOD[52:],),
    "a parent that is long": (GOOD[:36] + b"0" + GOOD[36:],),
    "flags in one digit": (GOOD[:-1],),
    "flags in three": (GOOD + b"0",),
    "more behind version 00": (GOOD + b"-x",),
    "a later version with more behind it and no dash": (b"cc" + GOOD[2:] + b".x",),
    "several in one field": (GOOD + b"," + GOOD,),
}


@pytest.mark.parametrize("values", BEGUN.values(), ids=BEGUN.keys())
def test_whatever_else_begins_a_new_trace_without_its_state(values: tuple[bytes, ...]) -> None:
    assert read(*values, state=(b"a=1",)) == NEW


STATES = {
    "one member": ((b"a=1",), True),
    "several fields are one list": ((b"a=1", b"b=2"), True),
    "empty members and space": ((b" a=1 , ,b=2\t",), True),
    "a tenant": ((b"fw529a3039@dt=FfmK1M6DEAA",), True),
    "a key that begins with a digit": ((b"0a=1",), True),
    "a key twice": ((b"a=1,a=2",), True),
    "a value with a space in it": ((b"a=1 2",), True),
    "none": ((), False),
    "nothing but commas": ((b" , ,",), False),
    "a key in capitals": ((b"A=1",), False),
    "no value": ((b"a=",), False),
    "no equals sign": ((b"a",), False),
    "an equals sign in the value": ((b"a=1=2",), False),
    "a value that is not ascii": ((b"a=\xc3\xa4",), False),
    "a long key": ((b"a" * 257 + b"=1",), False),
    "a long value": ((b"a=" + b"1" * 257,), False),
    "as many members as there may be": ((b",".join(b"k%d=1" % n for n in range(STATE_MEMBERS_MAX)),), True),
    "one more": ((b",".join(b"k%d=1" % n for n in range(STATE_MEMBERS_MAX + 1)),), False),
}


@pytest.mark.parametrize(("state", "keeps"), STATES.values(), ids=STATES.keys())
def test_state_goes_on_where_it_can_be_read(state: tuple[bytes, ...], keeps: bool) -> None:
    assert read(GOOD, state=state) == known(1, keeps)


def test_what_goes_up_is_version_00_with_our_span() -> None:
    trace = read(b"cc" + GOOD[2:] + b"-x")
    assert traceparent(trace.trace_id, b"\x01" * 8, trace.flags) == f"00-{TRACE}-{'01' * 8}-01".encode()
    assert read(traceparent(MINT, b"\x01" * 8, 3)) == Trace(MINT, b"\x01" * 8, 3, False)
