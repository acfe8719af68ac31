"""What is exchanged inside the shipped code while a history runs: clocks, the consumer's waits, a disk, a matcher, a spy."""

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from enforcers.doors import obeyed, replay
from enforcers.host import feed
from pipeline.shells.control import heard, recover
from tests.sim.control import door as doors
from tests.sim.control import host as hosts
from tests.sim.control.topic import Broker
from tests.sim.story import Story


def enter(
    stack: ExitStack, story: Story, broker: Broker, write: Callable[..., None], world: Callable[[], None]
) -> None:
    """Put them in."""

    class _Reader:
        """A reader of the topic `control` or `bundles`, in the shipped recovery."""

        def __init__(self, _: Any, topic: str, **__: Any) -> None:
            self.topic = topic

        async def __aenter__(self) -> tuple["_Reader", "_Reader"]:
            return self, self

        async def __aexit__(self, *_: object) -> None:
            return None

        async def end_offsets(self, wanted: Any) -> dict[Any, int]:
            return dict.fromkeys(wanted, broker.control.end)

    async def to_end(consumer: _Reader, place: Any, *, begin: int | None = None) -> Any:
        for message in broker.control.messages if consumer.topic.endswith("control") else ():
            yield message

    for module in (feed, obeyed, replay, heard):
        stack.enter_context(patch.object(module, "time", story.clock))
    waits = SimpleNamespace(Event=_Event, sleep=hosts.sleep, to_thread=hosts.to_thread)
    stack.enter_context(patch.object(feed, "asyncio", waits))
    stack.enter_context(patch.object(feed, "write_atomic", write))
    stack.enter_context(patch.object(obeyed, "Matchers", lambda folder: doors.Matchers(folder, story)))
    stack.enter_context(patch.object(obeyed, "BoardReader", lambda path: doors.Reader(path, world)))
    stack.enter_context(patch.object(recover, "reader", _Reader))
    stack.enter_context(patch.object(recover, "to_end", to_end))


class _Event:
    """In the place of asyncio's: nobody waits for it here."""

    def set(self) -> None:
        """Nobody waits."""

    def clear(self) -> None:
        """Nobody waits."""
