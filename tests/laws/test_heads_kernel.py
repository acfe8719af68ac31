"""The kernel `heads` against the same rules in Python: it takes what they take, and makes the same of it."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from enforcers.core.http.fields import (
    FIELDS_MAX,
    NOT_TO_NAME,
    ROLES,
    SORT_ANSWER,
    SORT_REQUEST,
    BadAnswer,
    BadRequest,
    Fault,
    Role,
    sorter,
    why_refused,
)
from ext.heads import Sorter
from schemas.limits import NAME_BYTES_MAX
from tests.support.httpfuzz import mutants
from tests.support.sorting import Sorted, slowly

SORTERS = {BadRequest: SORT_REQUEST, BadAnswer: SORT_ANSWER}


def agree(section: bytes, fault: Fault, before: bytes = b"") -> bool:
    """Whether both take `section`, which they do or do not together."""
    found = SORTERS[fault](before + section, len(before))
    wanted, why = by_python(section, fault), why_refused(section, fault)
    if isinstance(wanted, tuple):
        assert found == wanted, section
        assert why.code == "disagreement", "what is taken breaks no rule"
        return True
    assert found is None, section
    assert (type(why), why.code, why.status, str(why)) == (type(wanted), wanted.code, wanted.status, str(wanted)), section
    return False


def by_python(section: bytes, fault: Fault) -> Sorted | BadRequest | BadAnswer:
    try:
        return slowly(section, fault)
    except (BadRequest, BadAnswer) as refused:
        return refused


known = st.sampled_from(sorted(NOT_TO_NAME | set(ROLES) | {b"proxy-connection", b"proxy", b"proxy-", b"x", b"accept"}))
names = st.one_of(
    known,
    known.map(bytes.upper),
    known.map(bytes.title),
    known.map(lambda name: name.replace(b"-", b"_")),
    known.map(lambda name: name.replace(b"-", b"_", 1)),
    st.binary(max_size=4),
    st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=40).map(str.encode),
    st.sampled_from([b"n" * NAME_BYTES_MAX, b"n" * (NAME_BYTES_MAX + 1), b"p" * 32, b"p" * 33]),
)
values = st.one_of(
    st.binary(max_size=6),
    st.text("\t !~a:,_-", max_size=8).map(str.encode),
    st.sampled_from([b"chunked", b"5", b" 5", b"5 ", b"\xff", b"\x80 \t", b"a\rb", b"a\nb", b"a\r\nb", b"\0", b"\x7f"]),
)
lines = st.one_of(
    st.tuples(names, st.sampled_from([b":", b": ", b":\t", b" :", b""]), values).map(b"".join),
    st.binary(max_size=8),
)
sections = st.builds(
    lambda lines, ends: b"\r\n".join(lines) + ends,
    st.lists(lines, max_size=6),
    st.sampled_from([b"\r\n\r\n"] * 12 + [b"", b"\r\n", b"\r", b"\n\n", b"\r\n\r\nmore", b"\r\n\r\n\r\n"]),
)
faults = st.sampled_from([BadRequest, BadAnswer])


@given(sections, faults, st.binary(max_size=3))
@example(b"\r\n", BadRequest, b"GET / HTTP/1.1\r\n")
@example(b"", BadRequest, b"")
@example(b"\r", BadAnswer, b"")
@example(b"a:\r\n\r\n", BadRequest, b"")
@example(b"a: \r\n\r\n", BadRequest, b"")
@example(b"a:  b \r\nHost:h\r\nKeep-Alive: 1\r\n\r\n", BadRequest, b"")
@example(b"\r\n\r\n", BadRequest, b"")
@example(b":\r\n\r\n", BadRequest, b"")
@example(b"a: b\r\n c: d\r\n\r\n", BadRequest, b"")
def test_the_kernel_and_python_sort_alike(section: bytes, fault: Fault, before: bytes) -> None:
    agree(section, fault, before)


def test_they_agree_about_twenty_thousand_mutants() -> None:
    taken = refused = 0
    for data in itertools.islice(mutants(3), 20_000):
        line, end, rest = data.partition(b"\r\n")
        head, empty, _ = rest.partition(b"\r\n\r\n")
        section = head + empty
        for fault in (BadRequest, BadAnswer):
            if agree(section, fault, line + end):
                taken += 1
            else:
                refused += 1
    assert taken > 10_000
    assert refused > 2_000


def test_every_byte_is_judged_alike_in_a_name_and_in_a_value() -> None:
    taken = 0
    for byte in range(256):
        one = bytes([byte])
        for before, behind in ((b"", b": b"), (b"a", b": b"), (b"a:", b"b"), (b"a: b", b""), (b"a: b", b"c"), (b"a: ", b"")):
            section = before + one + behind
            taken += agree(section + b"\r\n\r\n", BadRequest) + agree(section + b"\r\n\r\n", BadAnswer)
    assert taken > 2000


@pytest.mark.parametrize("count", [FIELDS_MAX, FIELDS_MAX + 1])
def test_the_number_of_lines_is_bounded_alike(count: int) -> None:
    assert agree(b"".join(b"a%d: b\r\n" % number for number in range(count)) + b"\r\n", BadRequest) == (count == FIELDS_MAX)


def test_a_section_that_is_cut_anywhere_is_refused() -> None:
    section = b"Host: h\r\nproxy-authorization: x y\r\nTE: a\r\nte: b\r\ntraceparent: 1\r\nx:y\r\n\r\n"
    assert agree(section, BadRequest)
    for size in range(len(section)):
        assert not agree(section[:size], BadRequest)
    assert SORT_REQUEST(section, len(section) + 1) is None
    assert SORT_REQUEST(section, -1) is None


def test_what_has_no_room_in_the_kernel_is_said_at_once() -> None:
    sorter(len(Role))
    good = {"guarded": (), "once": (), "prefix": b"proxy-", "hop": 1, "trace": 2, "fields": 1, "name_bytes": 8}
    for bad in ({"fields": 129}, {"name_bytes": 0}, {"prefix": b""}, {"hop": 0}, {"trace": 32}, {"once": (33,)},
                {"guarded": (b"n" * 33,)}, {"guarded": (b"",)}, {"guarded": tuple(b"%d" % n for n in range(65))}):  # fmt: skip
        with pytest.raises(ValueError, match="a role is|a name has|too many"):
            Sorter({}, **{**good, **bad})  # type: ignore[arg-type]
