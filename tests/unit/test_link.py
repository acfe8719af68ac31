"""A producer that says nothing at all: no acknowledgement and no error, as one that is wedged after an outage."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

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


class Book:
    """Lanes with one frame that is due again whenever it has failed."""

    def __init__(self) -> None:
        self.ref = SimpleNamespace(lane=Lane(host="enforce-1", host_boot=1, partition=0), frame_no=1)
        self.in_hand = False
        self.sends = 0

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


def test_a_producer_that_never_answers_is_given_up_and_another_sends_the_same_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "AIOKafkaProducer", Silent)
    monkeypatch.setattr(link_module, "WEDGED_S", 0.2)
    monkeypatch.setattr(link_module, "RECONNECT_S", 0.01)
    monkeypatch.setattr(Silent, "made", 0)
    book = Book()
    engine = SimpleNamespace(name="enforce-1", public="00", lanes=book, outbox=SimpleNamespace(frame=lambda _: b"frame"))

    async def story() -> str:
        home, config = Home(tmp_path), Config(kafka=Kafka(servers="127.0.0.1:1"))
        registry = SimpleNamespace(registered=lambda *_: True, verifier=lambda _: None)
        link = Link(home, config, Broker(home, config), registry, lambda: [engine])  # type: ignore[list-item]
        sending = asyncio.create_task(link.send())
        async with asyncio.timeout(20):
            while book.sends < 2:
                await asyncio.sleep(0.05)
        state = link.state
        sending.cancel()
        await asyncio.wait([sending])
        return state

    asyncio.run(story())
    assert Silent.made >= 2
