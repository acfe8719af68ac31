"""Producers after an outage: one that is wedged (no acknowledgement and no error), one that has no room for a frame."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError

from enforcers.host import link as link_module
from enforcers.host.clients import Broker
from enforcers.host.link import Link
from schemas.config import Config, Kafka
from schemas.frame import Lane
from schemas.home import Home


class Silent:
    """A producer that takes everything and never answers."""

    made = 0

    def __init__(self, **_: Any) -> None:
        Silent.made += 1

    async def start(self) -> None:
        """Connected."""

    async def stop(self) -> None:
        """Gone."""

    async def send(self, *_: Any, **__: Any) -> "asyncio.Future[Any]":
        """Never done."""
        return asyncio.get_running_loop().create_future()


class Crowded(Silent):
    """A producer that waits in vain for room, as the first that is made; later ones take what they are given."""

    async def send(self, *_: Any, **__: Any) -> "asyncio.Future[Any]":
        """No room at first."""
        if Silent.made == 1:
            raise KafkaTimeoutError
        return await super().send()


class Book:
    """Lanes with one frame that is due again whenever it has failed."""

    def __init__(self) -> None:
        self.ref = SimpleNamespace(lane=Lane(host="enforce-1", host_boot=1, partition=0), frame_no=1)
        self.in_hand = False
        self.sends = 0

    def unstored(self) -> int:
        """It is never stored."""
        return 1

    def due(self, _now: int, _budget: int | None) -> list[Any]:
        """The frame, unless a producer has it."""
        return [] if self.in_hand else [self.ref]

    def sent(self, _ref: Any) -> None:
        """A producer has it."""
        self.in_hand = True
        self.sends += 1

    def failed(self, _ref: Any) -> None:
        """It was given up."""
        self.in_hand = False


def sends(root: Path, monkeypatch: pytest.MonkeyPatch, producer: type[Silent]) -> Book:
    """Run a link until its one frame was given away twice."""
    monkeypatch.setattr(link_module, "AIOKafkaProducer", producer)
    monkeypatch.setattr(link_module, "WEDGED_S", 0.2)
    monkeypatch.setattr(link_module, "RECONNECT_S", 0.01)
    monkeypatch.setattr(Silent, "made", 0)
    book = Book()
    engine = SimpleNamespace(name="enforce-1", public="00", lanes=book, outbox=SimpleNamespace(frame=lambda _: b"frame"))

    async def story() -> None:
        home, config = Home(root), Config(kafka=Kafka(servers="127.0.0.1:1"))
        registry = SimpleNamespace(registered=lambda *_: True, verifier=lambda _: None)
        link = Link(home, config, Broker(home, config), registry, lambda: [engine])  # type: ignore[list-item]
        sending = asyncio.create_task(link.send())
        async with asyncio.timeout(20):
            while book.sends < 2:
                await asyncio.sleep(0.05)
        sending.cancel()
        await asyncio.wait([sending])

    asyncio.run(story())
    return book


def test_a_producer_that_never_answers_is_given_up_and_another_sends_the_same_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sends(tmp_path, monkeypatch, Silent)
    assert Silent.made >= 2


def test_a_frame_that_a_producer_did_not_take_is_given_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sends(tmp_path, monkeypatch, Crowded)
    assert Silent.made == 2
