"""What is kept of a query: its length, a bound of its information, and a hash that only this home can make."""

import os

from hypothesis import given
from hypothesis import strategies as st

from enforcers.core.query import KEY_BYTES, information_bits, measure
from schemas.keys import QUERY_KEY_BYTES

KEY, OTHER = b"k" * KEY_BYTES, b"o" * KEY_BYTES


def test_no_query_is_nothing() -> None:
    assert measure(b"", KEY) == (0, 0, 0)


def test_a_query_is_known_again_by_its_hash_in_one_home_only() -> None:
    assert measure(b"q=1", KEY) == measure(b"q=1", KEY)
    assert measure(b"q=1", KEY)[2] != measure(b"q=2", KEY)[2]
    assert measure(b"q=1", KEY)[2] != measure(b"q=1", OTHER)[2]
    assert KEY_BYTES == QUERY_KEY_BYTES


def test_what_repeats_carries_little_and_what_is_random_carries_all() -> None:
    """Hex digits hold 4 bits each, and base64's characters 6: both measures are needed to see that."""
    data = os.urandom(2000)
    assert information_bits(b"a" * 4000) < 200
    assert information_bits(b"page=1&" * 500) < 600
    assert 0.97 * 8 * 2000 < information_bits(data) <= 8 * 2000
    assert 0.97 * 8 * 2000 < information_bits(data.hex().encode()) < 1.02 * 8 * 2000


@given(st.binary(max_size=300))
def test_the_bound_is_never_above_the_bytes_and_fits_its_field(data: bytes) -> None:
    size, bits, mark = measure(data, KEY)
    assert size == len(data)
    assert 0 <= bits <= 8 * size
    assert 0 <= mark < 1 << 64
