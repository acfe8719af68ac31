"""Open calls: the kernel against a dictionary, with ends that come before their decisions, and what makes room."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ext.opencalls import OpenCalls

Step = tuple[str, int, int, bool, bool]
"""`decided` or `ended`, seq, bytes, last (of a decision: its call is over), back."""


class Oracle:
    """A dictionary in the order of use."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.known: dict[int, dict[str, int]] = {}
        self.evicted = 0

    def _of(self, seq: int, touch: bool) -> dict[str, int]:
        if seq not in self.known:
            if len(self.known) == self.capacity:
                del self.known[next(iter(self.known))]
                self.evicted += 1
            self.known[seq] = {"bytes": 0, "place": -1, "over": 0, "back": 0}
        elif touch:
            self.known[seq] = self.known.pop(seq)
        return self.known[seq]

    def decided(self, seq: int, place: int, sent: int, over: bool) -> tuple[int, int]:
        if over:
            return 0, 0
        one = self._of(seq, False)
        if one["place"] >= 0:
            return 0, 0
        more, back = max(0, one["bytes"] - sent), one["back"]
        one |= {"place": place, "bytes": sent + more}
        if one["over"]:
            del self.known[seq]
        return more, back

    def ended(self, seq: int, sent: int, last: bool, back: bool) -> tuple[int, int]:
        one = self._of(seq, True)
        more = max(0, sent - one["bytes"])
        one["bytes"] += more
        if one["place"] < 0:
            one["over"] |= last
            one["back"] |= back
        elif last:
            del self.known[seq]
        return more, one["place"]


steps = st.lists(
    st.tuples(st.sampled_from(["decided", "ended"]), st.integers(1, 9), st.integers(0, 20), st.booleans(), st.booleans()),
    max_size=60,
)


def u64(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, np.uint64)


@given(steps=steps, capacity=st.sampled_from([2, 4, 100]))
def test_the_kernel_agrees_with_a_dictionary(steps: list[Step], capacity: int) -> None:
    kernel, oracle, latest = OpenCalls(capacity), Oracle(capacity), -1
    for number, (what, seq, sent, last, back) in enumerate(steps):
        place, time = np.array([number], np.int32), np.array([number], np.int64)
        if what == "decided":
            more_out, more_in, taken, over = u64(0), u64(0), np.zeros(1, np.uint8), np.array([last], np.uint8)
            sizes = (u64(sent), u64(2 * sent))
            kernel.decided(u64(5), u64(seq), place, time, *sizes, over, more_out, more_in, taken)
            latest = number
            more, withdrawn = oracle.decided(seq, number, sent, last)
            assert (more_out[0], more_in[0], taken[0]) == (more, 2 * more, withdrawn)
        else:
            out, into = u64(sent), u64(2 * sent)
            decision = np.array([9], np.int32)
            says = (np.array([last], np.uint8), np.array([back], np.uint8))
            kernel.ended(u64(5), u64(seq), out, into, *says, place, time, decision)
            more, where = oracle.ended(seq, sent, last, back)
            assert (out[0], into[0], place[0]) == (more, 2 * more, where)
            assert decision[0] == (0 if where >= 0 and where == latest else -1)
            assert where < 0 or time[0] == where
        assert (kernel.entries, kernel.evicted) == (len(oracle.known), oracle.evicted)


def test_places_are_renumbered_where_they_are_used() -> None:
    calls = OpenCalls(10)
    count = 3
    nothing = np.zeros(count, np.uint64)
    calls.decided(u64(1, 1, 1), u64(1, 2, 3), np.array([4, 0, 4], np.int32), np.zeros(count, np.int64), nothing, nothing,
                  np.zeros(count, np.uint8), nothing.copy(), nothing.copy(), np.zeros(count, np.uint8))  # fmt: skip
    used = np.zeros(6, np.uint8)
    calls.places(used)
    assert used.tolist() == [1, 0, 0, 0, 1, 0]
    calls.renumber(np.array([7, -1, -1, -1, 8, -1], np.int32))
    place = np.empty(3, np.int32)
    calls.ended(u64(1, 1, 1), u64(1, 2, 3), u64(1, 1, 1), u64(1, 1, 1), np.ones(3, np.uint8), np.zeros(3, np.uint8), place,
                np.empty(3, np.int64), decision := np.empty(3, np.int32))  # fmt: skip
    assert place.tolist() == [8, 7, 8]
    assert decision.tolist() == [0, 1, 2]


def test_a_table_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to"):
        OpenCalls(0)
