"""Who is acknowledged: doors that live, by their lock; and what becomes of a producer that says nothing at all."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enforcers.host import acks as acks_module
from enforcers.host.acks import Acks, Doors
from enforcers.host.clients import Broker
from ext.board import SeenWriter
from schemas.config import Config, Kafka
from schemas.home import Home
from schemas.process import Lock
from tests.support.obeying import ready

BOOTS = ["00000001000000aa", "00000001000000bb"]


def door(folder: Path, boot: str) -> Lock:
    """A door's folder, and its lock, held."""
    lock = Lock(folder / boot / "lock")
    assert lock.take()
    return lock


def test_a_door_is_named_while_somebody_holds_its_lock_and_never_again(tmp_path: Path) -> None:
    doors = Doors(tmp_path, lambda _: False)
    assert doors.look() == []
    locks = [door(tmp_path, boot) for boot in BOOTS]
    doors._listed = 0.0
    assert sorted(doors.look()) == [(boot, 0, b"", 0) for boot in BOOTS]
    SeenWriter(str(tmp_path / BOOTS[0])).write(7, bytes(32), 5)
    assert (BOOTS[0], 7, bytes(32), 5) in doors.look()
    locks[0].release()
    assert [one[0] for one in doors.look()] == [BOOTS[1]]
    assert locks[0].take(), "whoever adopts what it left holds the lock, and is no door"
    doors._listed = 0.0
    assert [one[0] for one in doors.look()] == [BOOTS[1]]
    locks[1].release()


def test_a_door_that_this_host_has_adopted_is_not_named(tmp_path: Path) -> None:
    lock = door(tmp_path, BOOTS[0])
    ended: set[int] = set()
    doors = Doors(tmp_path, lambda boot: boot in ended)
    assert [one[0] for one in doors.look()] == [BOOTS[0]]
    ended.add(int(BOOTS[0], 16))
    assert doors.look() == []
    lock.release()


class Silent:
    """A producer that takes everything and never answers."""

    made = 0

    def __init__(self, **_: Any) -> None:
        Silent.made += 1

    async def start(self) -> None:
        """Connected."""

    async def stop(self) -> None:
        """Gone."""

    async def send_and_wait(self, *_: Any, **__: Any) -> None:
        """Never done."""
        await asyncio.get_running_loop().create_future()


def test_a_producer_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acks_module, "AIOKafkaProducer", Silent)
    monkeypatch.setattr(acks_module, "SEND_S", 0.1)
    monkeypatch.setattr(acks_module, "RECONNECT_S", 0.02)
    monkeypatch.setattr(Silent, "made", 0)
    broker = Broker(Home(tmp_path), Config(kafka=Kafka(servers="127.0.0.1:1")))
    feed = SimpleNamespace(obey=ready().obey)
    doors = Doors(tmp_path, lambda _: False)
    acks = Acks(broker, feed, doors, boot=1, sign=lambda _: bytes(64), lag=lambda: 0)  # type: ignore[arg-type]

    async def story() -> None:
        publishing = asyncio.create_task(acks.publish())
        async with asyncio.timeout(20):
            while Silent.made < 2:
                await asyncio.sleep(0.02)
        publishing.cancel()
        await asyncio.wait([publishing])

    asyncio.run(story())
