"""A connection to the store with a thread of its own, and the patience to try again.

What is done at one desk waits for what was asked there before, and for nothing else.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from pipeline.shells.worker.patience import Patience

T = TypeVar("T")
S = TypeVar("S")


class Desk(Generic[S]):
    """`store` is used from this thread only."""

    def __init__(self, store: S, name: str, *, refused_s: float) -> None:
        self.store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.patience = Patience(self.run, refused_s=refused_s)

    async def run(self, work: Callable[[], T]) -> T:
        """Do something that blocks, once."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def persist(self, what: str, work: Callable[..., T], *arguments: Any) -> T:
        """Do what the store has to do until it succeeds; raises as `Patience.persist`."""
        return await self.patience.persist(what, work, *arguments)

    def close(self) -> None:
        """End the thread, once it has done what it was asked."""
        self._thread.shutdown()
