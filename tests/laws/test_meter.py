"""What was told to whom: the kernel against oracles too simple to be wrong, and its three limits."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ext.meter import Units, decayed, name_bits

Item = tuple[int, int, int, int, bool]
"""Pair, kind, hash, time, refused; the bits follow from the hash."""


def bits_of(item_hash: int) -> float:
    return float(1 + item_hash % 5)


@given(st.text(max_size=80))
def test_the_bits_of_a_text_are_its_length_times_its_entropy(text: str) -> None:
    data = text.encode()
    entropy = -sum(n / len(data) * math.log2(n / len(data)) for n in Counter(data).values())
    assert name_bits(text) == pytest.approx(len(data) * entropy, abs=1e-9)
    assert math.copysign(1, name_bits(text)) == 1


@given(st.lists(st.tuples(st.integers(0, 10**12), st.floats(0, 1e4)), max_size=30), st.floats(1e3, 1e12))
def test_a_meter_is_the_sum_of_what_is_left_of_each_item(items: list[tuple[int, float]], half: float) -> None:
    items.sort()
    found = decayed(np.array([t for t, _ in items], np.int64), np.array([b for _, b in items], np.float64), half)
    for at, (now, _) in enumerate(items):
        left = sum(bits * 2 ** ((time - now) / half) for time, bits in items[: at + 1])
        assert found[at] == pytest.approx(left, rel=1e-6, abs=1e-6)


def fill(units: Units, items: list[Item]) -> dict[int, int]:
    """Give the items to the kernel, one at a time; the slot of each pair."""
    slots = {}
    for pair, kind, item_hash, time, refused in items:
        slot, _ = units.find(np.array([pair], np.uint64), np.array([1], np.uint64))
        slots[pair] = int(slot[0])
        bits, when, no = np.array([bits_of(item_hash)]), np.array([time], np.int64), np.array([refused], np.uint8)
        call = (np.array([7], np.uint64), np.array([time], np.uint64))
        units.add(slot, kind, np.array([item_hash], np.uint64), bits, when, no, *call, np.zeros(1, np.uint8))
    return slots


def kept(units: Units, slot: int) -> set[tuple[Any, ...]]:
    _, kind, hashes, time, bits, refused, boot, seq = units.of(slot)
    return set(zip(*(c.tolist() for c in (kind, hashes, time, bits, refused, boot, seq)), strict=True))


def oracle(items: list[Item], pair: int, most: tuple[int, int]) -> set[tuple[Any, ...]]:
    """Of each kind the items of the most bits, each with its first time."""
    found: set[tuple[Any, ...]] = set()
    for kind in (0, 1):
        seen: dict[int, tuple[int, bool]] = {}
        for _, _, item_hash, time, refused in (one for one in items if one[:2] == (pair, kind)):
            first, ever = seen.get(item_hash, (time, False))
            seen[item_hash] = (min(first, time), ever or refused)
        largest = sorted(seen, key=lambda one: (bits_of(one), one))[-most[kind] :]
        found |= {(kind, one, seen[one][0], bits_of(one), int(seen[one][1]), 7, seen[one][0]) for one in largest}
    return found


item = st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 12), st.integers(0, 5), st.booleans())
items = st.lists(item, min_size=1, max_size=60)


@settings(max_examples=50)
@given(items=items)
def test_units_keep_each_item_once_with_its_first_time(items: list[Item]) -> None:
    units = Units(8, 1000, 500, 400)
    for pair, slot in fill(units, items).items():
        assert kept(units, slot) == oracle(items, pair, (500, 400))
        assert units.of(slot)[0] == sum(one[0] == pair for one in items)
        told, asked = units.bits_of(np.array([slot], np.int32))
        counts = {one: one[0] == 0 or one[4] for one in kept(units, slot)}
        assert told[0] == sum(one[3] for one, counted in counts.items() if counted)
        assert asked[0] == sum(one[3] for one, counted in counts.items() if not counted)
        early = [one[3] for one in kept(units, slot) if one[0] == 1 and not one[4] and one[2] < 3]
        assert units.asked_before(slot, 3) == sum(early)
    assert units.evicted == 0


@settings(max_examples=30)
@given(items=items, data=st.data())
def test_which_items_a_full_pair_keeps_does_not_depend_on_their_order(items: list[Item], data: st.DataObject) -> None:
    first, second = Units(8, 1000, 4, 3), Units(8, 1000, 4, 3)
    slots, again = fill(first, items), fill(second, data.draw(st.permutations(items)))
    for pair, slot in slots.items():
        assert kept(first, slot) == kept(second, again[pair])
        assert {(one[0], one[1]) for one in kept(first, slot)} == {(one[0], one[1]) for one in oracle(items, pair, (4, 3))}


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 200), st.just(0), st.integers(0, 50), st.just(1), st.just(False)), max_size=200))
def test_the_pair_used_least_lately_makes_room(items: list[Item]) -> None:
    units = Units(10, 40, 8, 8)
    fill(units, items)
    recent = list(dict.fromkeys(pair for pair, *_ in reversed(items)))
    assert units.pairs <= 10
    assert units.units <= 40
    asked = np.array(recent[: units.pairs], np.uint64)
    _, new = units.find(asked, np.zeros(len(asked), np.uint64))
    assert not new.any(), "the pairs that are kept are those used last"
    assert units.evicted == len(oldest(items))


def oldest(items: list[Item]) -> list[int]:
    """The pairs that make room, by a list in the order of use."""
    order: list[int] = []
    held: dict[int, set[int]] = {}
    gone = []
    for pair, _, item_hash, _, _ in items:
        if pair in held:
            order.remove(pair)
        elif len(order) == 10:
            gone.append(order.pop(0))
            del held[gone[-1]]
        order.append(pair)
        mine = held.setdefault(pair, set())
        if item_hash in mine:
            continue
        if len(mine) == 8:
            least = min(mine, key=lambda one: (bits_of(one), one))
            if (bits_of(item_hash), item_hash) < (bits_of(least), least):
                continue
            mine.remove(least)
        while sum(map(len, held.values())) == 40:
            gone.append(order.pop(0))
            del held[gone[-1]]
        mine.add(item_hash)
    return gone


def test_a_slot_that_nobody_has_is_refused() -> None:
    with pytest.raises(KeyError):
        Units(1, 1, 1, 1).of(0)
    with pytest.raises(ValueError, match="no such table"):
        Units(0, 1, 1, 1)
