"""The digest of what is live: equal sets have equal digests, however they came about, and different sets do not."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.control import BUCKETS, LiveDigest, leaf_of
from tests.support.entries import digest_of

# payloads whose leaves share a few buckets, so that several stand in one
CROWDED = [p for p in (b"%d" % n for n in range(40_000)) if leaf_of(p)[0] == 0][:60]
payloads = st.sampled_from(CROWDED)
changes = st.lists(st.tuples(st.booleans(), payloads), max_size=80)


def made(wanted: set[bytes]) -> LiveDigest:
    digest = LiveDigest()
    for payload in wanted:
        digest.add(leaf_of(payload))
    return digest


@given(changes)
def test_whatever_the_way_the_digest_is_that_of_the_set(ops: list[tuple[bool, bytes]]) -> None:
    digest, wanted = LiveDigest(), set[bytes]()
    for ask, payload in ops:
        if payload in wanted:
            digest.remove(leaf_of(payload))
            wanted.remove(payload)
        else:
            digest.add(leaf_of(payload))
            wanted.add(payload)
        if ask:
            assert digest.digest() == digest_of(wanted)
            assert digest.leaves == len(wanted)
    assert digest.digest() == digest_of(wanted) == made(wanted).digest()


@given(st.sets(payloads, max_size=20), payloads)
def test_one_leaf_more_is_another_digest(some: set[bytes], more: bytes) -> None:
    assert (made(some).digest() == made(some | {more}).digest()) == (more in some)


@given(st.sets(payloads, max_size=20), payloads)
def test_a_leaf_that_is_not_there_cannot_be_taken_out_and_nothing_changes(some: set[bytes], other: bytes) -> None:
    digest = made(some - {other})
    with pytest.raises(KeyError):
        digest.remove(leaf_of(other))
    assert digest.digest() == digest_of(some - {other})
    assert digest.leaves == len(some - {other})


def test_bytes_that_stand_across_two_leaves_are_no_leaf() -> None:
    """Two leaves side by side hold the bytes of a third of their own bucket, which was never put in."""
    first, second = bytes(2) + bytes(range(1, 29)) + bytes(2), bytes(2) + bytes(range(100, 130))
    across = (first + second)[30:62]
    digest = LiveDigest()
    for leaf in (first, second):
        digest.add(leaf)
    before = digest.digest()
    with pytest.raises(KeyError):
        digest.remove(across)
    assert (digest.digest(), digest.leaves) == (before, 2)
    digest.add(across)
    digest.remove(across)
    assert digest.digest() == before


def test_a_leaf_is_found_behind_its_own_bytes_across_two_others() -> None:
    """The first place where its bytes stand is not where it stands: it must be looked for again."""
    others = [bytes(2) + b"\5" + bytes(29), bytes(31) + b"\7"]
    leaf = bytes(32)
    digest = LiveDigest()
    for put in (*others, leaf):
        digest.add(put)
    digest.remove(leaf)
    assert digest.leaves == 2
    for put in others:
        digest.remove(put)
    assert digest.digest() == LiveDigest().digest()


def test_nothing_has_a_digest_too() -> None:
    empty = hashlib.sha256(b"").digest()
    assert LiveDigest().digest() == hashlib.sha256(empty * BUCKETS).digest() == digest_of([])


def test_the_crowded_payloads_share_buckets() -> None:
    numbers = [int(leaf_of(payload).hex()[:3], 16) for payload in CROWDED]
    assert len(CROWDED) == 60
    assert len(set(numbers)) <= 16
