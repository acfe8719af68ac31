"""Acknowledgements become rows: what is new, once; what is old or nobody's, never."""

import asyncio
from dataclasses import replace
from typing import Any

from pipeline.shells.worker.acks import Acks, Book
from schemas.ack import Ack, DoorAck
from schemas.config import Config
from tests.support.entries import CONTROL, NOW_NS, STRANGER, make_ack

DOOR, OTHER = make_ack().doors


def opened(ack: Ack, *stored: tuple[Any, ...]) -> Book:
    book = Book()
    assert not book.knows(ack)
    book.open(ack, stored)
    assert book.knows(ack)
    return book


def brief(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["door"][-2:], row["epoch"], row["state"], row["doors"]) for row in rows]


def later(ack: Ack, **changes: Any) -> Ack:
    return replace(ack, said_ns=ack.said_ns + 1_000_000_000, **changes)


def test_a_word_that_is_said_again_is_no_news() -> None:
    ack = make_ack()
    book = opened(ack)
    assert brief(book.news(ack, 1)) == [("", 7, "ready", 2), ("aa", 7, "ready", 2), ("ab", 6, "ready", 2)]
    assert book.news(later(ack, counter=9, lag_records=5), 1) == []


def test_what_one_door_has_applied_is_one_row() -> None:
    ack = make_ack()
    book = opened(ack)
    book.news(ack, 1)
    caught_up = replace(OTHER, epoch=7, applied_ns=NOW_NS + 5_000_000)
    (row,) = book.news(later(ack, doors=(DOOR, caught_up)), 4)
    assert row == {
        "journal": 4, "host": "enforce-1", "host_boot": "00000001000000bb", "door": "00000001000000ab", "epoch": 7,
        "policy_digest": "", "applied": NOW_NS // 1000 + 5_000, "state": "ready", "doors": 2, "tenant": "default",
        "said": NOW_NS // 1000 + 1_000_000,
    }  # fmt: skip


def test_a_door_that_its_host_names_no_more_is_gone_and_so_are_all_when_it_stops() -> None:
    ack = make_ack()
    book = opened(ack)
    book.news(ack, 1)
    second = later(ack, doors=(DOOR,))
    assert brief(book.news(second, 1)) == [("", 7, "ready", 1), ("ab", 6, "gone", 1)]
    assert brief(book.news(later(second, state="stopped"), 1)) == [("", 7, "stopped", 0), ("aa", 7, "gone", 0)]


def test_an_older_word_is_no_news() -> None:
    """Somebody may write to the topic what a host has said before."""
    ack = make_ack()
    book = opened(ack)
    book.news(later(ack, epoch=9), 1)
    assert book.news(ack, 1) == []
    assert book.news(replace(ack, epoch=9), 1) == []
    assert brief(book.news(replace(ack, epoch=10), 1)) == [("", 10, "ready", 2)], "a clock that was set back hides no epoch"


def test_a_worker_that_starts_goes_on_where_the_store_is() -> None:
    ack = make_ack()
    said_us = ack.said_ns // 1000
    stored = [
        ("", ack.epoch, ack.policy_digest, ack.applied_ns // 1000, "ready", 2, said_us),
        (DOOR.boot, DOOR.epoch, DOOR.policy_digest, DOOR.applied_ns // 1000, "ready", 2, said_us),
        (OTHER.boot, OTHER.epoch, OTHER.policy_digest, OTHER.applied_ns // 1000, "ready", 2, said_us),
        ("00000001000000ff", 3, "", 0, "gone", 2, said_us),
    ]
    assert opened(ack, *stored).news(later(ack), 1) == []
    gone = opened(ack, *stored).news(later(ack, doors=(DOOR,)), 1)
    assert brief(gone) == [("", 7, "ready", 1), ("ab", 6, "gone", 1)], "a door that left while no worker looked is missed"


def test_another_start_of_a_host_is_another_page() -> None:
    ack = make_ack()
    book = opened(ack)
    book.news(ack, 1)
    again = later(ack, boot="00000002000000bb", doors=())
    assert not book.knows(again)
    book.open(again, [])
    assert brief(book.news(again, 1)) == [("", 7, "ready", 0)]


class Keys:
    why = ""

    def key_of(self, host: str) -> Any:
        return CONTROL.verify if host == "enforce-1" else None

    former_of = key_of

    async def ready(self) -> None:
        """It is."""

    async def caught_up(self) -> bool:
        return True


class Store:
    def __init__(self) -> None:
        self.asked = 0

    def ack_state(self, journal: int, host: str, host_boot: str) -> list[tuple[Any, ...]]:
        self.asked += 1
        return []

    def keep_acks(self, rows: Any) -> None:
        raise AssertionError("nobody has asked for it")


class Scribe:
    async def stored(self, what: str, work: Any, *arguments: Any) -> Any:
        return work(*arguments)


def test_only_a_registered_host_is_heard_and_the_store_is_asked_once_for_each_start_of_it() -> None:
    store = Store()
    acks = Acks(Config(), slot="work-1", servers="nowhere:1", keys=Keys(), scribe=Scribe(), store=store)  # type: ignore[arg-type]
    good = make_ack(doors=(DoorAck(boot="00000001000000aa", epoch=7, policy_digest="", applied_ns=0),))
    data = good.encode(CONTROL.sign)
    for bad in (None, b"", data[:-1], good.encode(STRANGER.sign), make_ack(host="another").encode(CONTROL.sign)):
        assert acks._heard(bad) is None
    heard = acks._heard(data)
    assert heard == good

    async def twice() -> tuple[int, int]:
        return len(await acks._news(good, 1)), len(await acks._news(later(good), 1))

    assert asyncio.run(twice()) == (2, 0)
    assert store.asked == 1
