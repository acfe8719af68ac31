"""The book of traces against one made of dictionaries: what is held, in which order, what settles, and what was put away."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ext.traces import TraceBook
from schemas.layout import VERDICT_UNSAID

TRACES, CALLS, EACH = 6, 10, 4
DECISION, EFFECT, LOST = 1, 3, 4
ALLOW, OK = 1, 1

Rec = tuple[int, int, int, int, int, int]
"""Trace, call, kind, time (of a decision: how long after it its call ended), verdict, outcome."""


@dataclass
class Plain:
    """What a book is, slow on purpose."""

    calls: dict[int, dict[int, dict[str, int]]] = field(default_factory=dict)
    """Trace -> call -> facts, oldest touched first."""
    touched: dict[int, int] = field(default_factory=dict)
    unseen: dict[int, int] = field(default_factory=dict)
    settled: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    torn: set[int] = field(default_factory=set)

    def add(self, recs: list[Rec], now: int) -> list[int]:
        found: list[int] = []
        for trace, call, kind, time, verdict, outcome in recs:
            if trace not in self.calls and trace in self.gone:
                self.torn.add(trace)
                self.gone.discard(trace)
            mine = self.calls.pop(trace, {}) if trace not in found else self.calls[trace]
            self.calls[trace] = mine
            if trace not in found:
                found.append(trace)
            self.touched[trace] = now
            self.settled.discard(trace)
            if call not in mine:
                if len(mine) == EACH:
                    self.unseen[trace] = self.unseen.get(trace, 0) + (kind == DECISION)
                    continue
                mine[call] = {"start": 0, "end": 0, "bits": 0}
            one = mine[call]
            if kind == DECISION:
                one["start"] = 1000 + call
                one["bits"] |= 1 | (2 if verdict == 1 else 0) | (4 if verdict == 0 else 0)
                if verdict == ALLOW and outcome:
                    one["bits"] |= 8
                    one["end"] = max(one["end"], 1000 + call + time)
            else:
                one["end"] = max(one["end"], time)
                one["bits"] |= (8 if kind == EFFECT else 16) | (4 if verdict == 0 else 0)
        return found

    def settle(self, until: int) -> list[int]:
        found = []
        for trace in self.calls:
            if trace not in self.settled:
                if self.touched[trace] > until:
                    break
                found.append(trace)
                self.settled.add(trace)
        return found

    def drop(self, traces: list[int]) -> None:
        for trace in traces:
            del self.calls[trace]
            self.gone.add(trace)
            self.torn.discard(trace)
            self.settled.discard(trace)
            self.unseen.pop(trace, None)


def trace_bytes(trace: int) -> bytes:
    return trace.to_bytes(2, "big") + bytes(14)


def put(book: TraceBook, recs: list[Rec], now: int) -> list[int]:
    """Add records; the traces that were touched."""
    def column(at: int, kind: Any) -> Any:
        return np.array([rec[at] for rec in recs], kind)

    times = np.array([1000 + call if kind == DECISION else time for _, call, kind, time, *_ in recs], np.int64)
    slots = book.add(
        np.frombuffer(b"".join(trace_bytes(rec[0]) for rec in recs), np.uint8),
        np.frombuffer(b"".join(rec[1].to_bytes(8, "big") for rec in recs), np.uint8), column(2, np.uint8),
        np.full(len(recs), 7, np.uint64), column(1, np.uint64), times, column(3, np.uint64), column(4, np.uint8),
        column(5, np.uint8), np.zeros(len(recs), np.uint8), column(1, np.int32), np.zeros(len(recs), np.int32), now,
    )  # fmt: skip
    return names(book, slots)


def names(book: TraceBook, slots: Any) -> list[int]:
    return [int.from_bytes(book.ids[slot].tobytes()[:2], "big") for slot in slots]


def held(book: TraceBook) -> Any:
    """Everything that a book has, oldest touched first."""
    slots = book.oldest(book.traces, 0)
    places, number = book.gather(slots)
    calls: list[dict[int, dict[str, int]]] = [{} for _ in slots]
    for place, at in zip(places.tolist(), number.tolist(), strict=True):
        decided = bool(book.state[place] & 1)
        seq = int(book.seq[place])
        assert not decided or (int(book.parent[place]), int(book.who[place])) == (seq, seq)
        calls[at][seq] = {
            "start": int(book.start[place]) if decided else 0, "end": int(book.end[place]), "bits": int(book.state[place])
        }
    flags = book.flags[slots]
    return names(book, slots), calls, book.unseen[slots].tolist(), (flags & 1).tolist(), (flags & 2).tolist()


records = st.tuples(
    st.integers(1, 9), st.integers(1, 6), st.sampled_from([DECISION, DECISION, EFFECT, LOST]), st.integers(1, 50),
    st.sampled_from([0, 1]), st.sampled_from([0, OK, 2]),
).map(lambda rec: rec if rec[2] == DECISION or rec[4] == 0 else (*rec[:4], VERDICT_UNSAID, rec[5]))  # fmt: skip
consistent = st.lists(records, min_size=1, max_size=3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), consistent), st.tuples(st.just("settle"), st.integers(0, 4)),
        st.tuples(st.just("drop"), st.integers(0, 3)),
    ),
    max_size=30,
)  # fmt: skip


def once(recs: list[Rec], said: dict[tuple[int, int], Rec]) -> list[Rec]:
    """A decision says the same each time that it comes."""
    return [said.setdefault((rec[0], rec[1]), rec) if rec[2] == DECISION else rec for rec in recs]


@settings(max_examples=100, deadline=None)
@given(script=steps, key=st.integers(0, 2**64 - 1))
def test_the_book_is_the_plain_one(script: list[tuple[str, Any]], key: int) -> None:
    book, plain = TraceBook(TRACES, CALLS, EACH, 1 << 12, key), Plain()
    said: dict[tuple[int, int], Rec] = {}
    for now, (what, value) in enumerate(script, 1):
        if what == "add":
            while not book.room(len(value)):
                slots = book.oldest(1, 0)
                plain.drop(names(book, slots))
                book.drop(slots)
            recs = once(value, said)
            assert put(book, recs, now) == plain.add(recs, now)
        elif what == "settle":
            assert names(book, book.settle(now - value)) == plain.settle(now - value)
        else:
            slots = book.oldest(value, 0)
            plain.drop(names(book, slots))
            book.drop(slots)
        wanted = [
            list(plain.calls), list(plain.calls.values()), [plain.unseen.get(trace, 0) for trace in plain.calls],
            [int(trace in plain.settled) for trace in plain.calls], [2 * (trace in plain.torn) for trace in plain.calls],
        ]  # fmt: skip
        assert list(held(book)) == wanted
        assert (book.traces, book.calls) == (len(plain.calls), sum(map(len, plain.calls.values())))


def test_what_has_no_room_is_refused_whole() -> None:
    book = TraceBook(2, 2, 2, 8, 0)
    put(book, [(1, 1, DECISION, 0, ALLOW, 0)], 1)
    with pytest.raises(ValueError, match="no room for 2 records"):
        put(book, [(2, 1, DECISION, 0, ALLOW, 0), (3, 1, DECISION, 0, ALLOW, 0)], 2)
    assert book.traces == 1


def test_a_call_that_took_longer_than_a_clock_has_time_is_no_error() -> None:
    book = TraceBook(2, 2, 2, 8, 0)
    put(book, [(1, 1, DECISION, 2**64 - 1, ALLOW, OK), (1, 2, DECISION, 2**63, ALLOW, OK)], 1)
    assert [(facts["end"], facts["bits"]) for facts in held(book)[1][0].values()] == [(0, 11), (1000, 11)]


def test_columns_of_other_lengths_and_books_without_room_are_refused() -> None:
    book = TraceBook(2, 2, 2, 8, 0)
    empty, one = np.zeros(0, np.uint8), np.zeros(1, np.uint64)
    with pytest.raises(ValueError, match="columns of one length"):
        book.add(empty, empty, empty, one, one, np.zeros(1, np.int64), one, empty, empty, empty, np.zeros(0, np.int32),
                 np.zeros(0, np.int32), 1)  # fmt: skip
    for sizes in ((0, 1, 1, 1), (2, 1, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)):
        with pytest.raises(ValueError, match="a trace or more"):
            TraceBook(*sizes, 0)
