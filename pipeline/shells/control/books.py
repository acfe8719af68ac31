"""The log, its journal and the keys as one: a change is made here, by one caller at a time, or it is not made.

    request -> change -> signed -> committed -> applied -> (whoever waits is woken) -> head written -> answered

A crash before `committed` leaves nothing. A crash after it leaves the change: the next start publishes it, and answers for it
when it is asked by the request's id.
"""

import asyncio
import hashlib
import json
import logging
import sqlite3
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Final, TypeVar

from pipeline.core.control import OWN, Change, Log
from pipeline.core.standing import HISTORY_MAX
from pipeline.shells.control.journal import Answer, Journal
from pipeline.shells.control.keyring import Keyring
from schemas.control import MAGIC
from schemas.errors import OperatorFault, PeerFault
from schemas.home import Home

log = logging.getLogger(__name__)

COUNTERS: Final = 60_000
"""Heartbeat counters that are reserved at a time: they follow the clock in milliseconds, so a minute."""

FRESH_MAX: Final = 20_000
"""Messages of the last changes that are kept in memory, so that they are published without reading them again."""

VOID_MAX: Final = 10_000
"""Ids that were asked for in vain and so may not be used any more."""

RESIGN: Final = 10_000
"""Entries that are signed again in one transaction."""

_T = TypeVar("_T")


class Void(OperatorFault):
    """The id of a request that was said not to be made."""


class Broken(Exception):
    """The journal has failed in the middle of a change: nobody is answered, control ends."""


class Conflict(OperatorFault):
    """The id of a request that was made, with another request."""


class Books:
    """What control is; made in the event loop. `changed` is called after each change, in the event loop."""

    def __init__(self, home: Home, *, live_bytes_max: int) -> None:
        self.log = Log(live_bytes_max=live_bytes_max)
        self.keys = Keyring(home)
        self._bytes_max = live_bytes_max
        self._journal = Journal(home.control)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._lock = asyncio.Lock()
        self._void: OrderedDict[str, None] = OrderedDict()
        self._counter = 0
        self.opened = 0
        """The last epoch when the journal was opened."""
        self._fresh: dict[int, tuple[int, str, bytes]] = {}
        self.broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Done when only a new start can go on."""
        self.changed: Callable[[], None] = lambda: None

    async def _run(self, job: Callable[..., _T], *args: Any, **named: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: job(*args, **named))

    async def open(self) -> None:
        """Read the journal, find the keys. Raises OperatorFault for a journal or a key that is not as it must be."""
        await self._run(self._journal.open, self.log)
        self.opened = self.log.epoch
        if self._journal.empty:
            return
        if self._bytes_max and self.log.live_bytes > self._bytes_max:
            raise OperatorFault(
                f"{self._journal.path}: all live entries have {self.log.live_bytes} bytes, limit is {self._bytes_max} on the "
                "embedded broker; use a kafka (kafka.servers)"
            )
        await self._use_keys()

    async def begin(self, epoch: int, counter: int) -> None:
        """Write the first change of an empty journal: the control key. `epoch` and `counter` are what a topic already had."""
        if self._journal.empty:
            self.log.epoch = epoch
            key_id = self.keys.newest() or self.keys.make()
            self.keys.use(key_id)
            await self.change({"do": "key-rotate", "public": self.keys.public(key_id)}, actor=OWN)
        self._counter = max(counter, self._journal.counter)

    @property
    def empty(self) -> bool:
        """Whether no change was ever made."""
        return self._journal.empty

    async def _use_keys(self) -> None:
        """Sign with the newest key that the log names; pin those that it names, forget those that it has removed."""
        names = [entry.name for entry in self.log.entries("key")]
        self.keys.use(names[-1])
        self.keys.pin(names)
        gone = [name for name in self.keys.made() if name not in names]
        removed = [name for name in gone if await self._run(self._journal.last_epoch, f"key/{name}")]
        self.keys.drop(removed)

    # -- changing ----------------------------------------------------------------------------------------------------

    async def change(
        self, request: Mapping[str, Any], *, actor: str, request_id: str = "", bundle: bytes | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> tuple[Answer, bool]:
        """Make a change; returns what it made, and whether that was made before under the same id.

        `asked` is what was asked for where `request` has more in it.
        Raises OperatorFault when the request cannot be, Conflict and Void for its id, PeerFault when the journal cannot be
        written: nothing is changed then.
        """
        request_id = request_id or str(uuid.uuid4())
        digest = _digest(asked or request)
        async with self._lock:
            if known := await self._known(request_id, digest):
                return known, True
            change = await self._run(self.log.change, request, now_ns=time.time_ns(), actor=actor)
            await self._make(change, request_id=request_id, request=digest, bundle=bundle)
            if request["do"] in ("key-rotate", "key-retire"):
                await self._use_keys()
            first, last = change.entries[0].epoch, change.entries[-1].epoch
            log.info("epoch %d: `%s` by %s", last, request["do"], actor)
            return Answer(first=first, last=last, result=change.result, request=digest), False

    async def _known(self, request_id: str, digest: str) -> Answer | None:
        if request_id in self._void:
            raise Void(f"request `{request_id}` was said not to be made; use a new id")
        known = await self._run(self._journal.answer, request_id)
        if known is not None and known.request != digest:
            raise Conflict(f"request `{request_id}` was made already, and asked for something else")
        return known

    async def made(self, request: Mapping[str, Any], request_id: str) -> bool:
        """Whether a request was made under this id. Raises Conflict and Void as `change` does."""
        async with self._lock:
            return await self._known(request_id, _digest(request)) is not None

    async def _make(self, change: Change, *, request_id: str, request: str, bundle: bytes | None = None) -> None:
        try:
            fresh = await self._run(self._commit, change, request_id, request, bundle)
        except sqlite3.Error as fault:
            # whether the change is made is known to the next start alone
            if not self.broken.done():
                self.broken.set_result(fault)
            raise Broken from fault
        self.log.apply(change)
        self._fresh.update((one[0], one) for one in fresh)
        for epoch in list(islice(self._fresh, max(0, len(self._fresh) - FRESH_MAX))):
            del self._fresh[epoch]
        self.changed()
        try:
            await self._run(self._journal.say_head)
        except OSError as fault:  # the change is made; until the next one the journal could be cut back to the one before
            log.warning("control/head.json cannot be written: %s", fault.strerror)

    def _commit(self, change: Change, request_id: str, request: str, bundle: bytes | None) -> list[tuple[int, str, bytes]]:
        key_id, sign = self.keys.key_id, self.keys.sign
        seals = [key_id + sign(MAGIC + payload) for payload in change.payloads]
        kept = [one.digest for one in self.log.policies[1 - HISTORY_MAX :]]
        self._journal.commit(change, seals, request_id=request_id, request=request, bundle=bundle, kept=kept)
        made = zip(change.entries, seals, change.payloads, strict=True)
        return [(entry.epoch, entry.key, MAGIC + seal + payload) for entry, seal, payload in made]

    async def expire(self) -> int:
        """End the revocations and exceptions whose time has come; returns how many."""
        async with self._lock:
            change = self.log.expired(time.time_ns())
            if change is None:
                return 0
            await self._make(change, request_id=str(uuid.uuid4()), request="")
            log.info("epoch %d: %d revocations and exceptions have ended", self.log.epoch, len(change.entries))
            return len(change.entries)

    async def sign_again(self) -> int:
        """Have every live entry signed by the key that signs now; returns how many were not."""
        async with self._lock:
            self._fresh.clear()
            epochs, done = self.log.epochs(), 0
            for at in range(0, len(epochs), RESIGN):
                done += await self._run(self._sign_part, epochs[at : at + RESIGN])
            return done

    def _sign_part(self, epochs: list[int]) -> int:
        key_id, sign = self.keys.key_id, self.keys.sign
        head = MAGIC + key_id
        old = [epoch for epoch, _, message in self._journal.messages(epochs) if not message.startswith(head)]
        rows = [(epoch, payload, key_id + sign(MAGIC + payload)) for epoch, payload in self._journal.payloads(old)]
        if rows:
            self._journal.seal_again(rows)
        return len(rows)

    # -- asking ------------------------------------------------------------------------------------------------------

    async def answer(self, request_id: str) -> Answer | None:
        """What a request made. None is final: from now on a request with this id is refused, so that one that is still on
        its way cannot be made behind our back.
        """
        async with self._lock:
            known = await self._run(self._journal.answer, request_id)
            if known is None:
                self._void[request_id] = None
                while len(self._void) > VOID_MAX:
                    self._void.popitem(last=False)
            return known

    async def after(self, epoch: int, limit: int, key: str = "") -> list[tuple[int, bytes]]:
        """(epoch, payload) of everything behind an epoch, of one key where one is given."""
        return await self._run(self._journal.after, epoch, limit, key)

    async def messages(self, epochs: list[int]) -> list[tuple[int, str, bytes]]:
        """(epoch, key, Kafka message) of these epochs, in order."""
        if all(epoch in self._fresh for epoch in epochs):
            return [self._fresh[epoch] for epoch in epochs]
        return await self._run(lambda: list(self._journal.messages(epochs)))

    async def last_epoch(self, key: str) -> int:
        """The epoch of the last entry of a key; 0 when there never was one."""
        return await self._run(self._journal.last_epoch, key)

    async def bundle(self, digest: str) -> bytes | None:
        """The packed bytes of a bundle."""
        return await self._run(self._journal.bundle, digest)

    async def counter(self) -> int:
        """A heartbeat counter that was never used: the clock in milliseconds, and always more than the last one."""
        self._counter = max(self._counter + 1, time.time_ns() // 1_000_000)
        if self._counter > self._journal.counter:
            # before it is used: after a crash the next start begins above what is said here
            try:
                await self._run(self._journal.reserve, self._counter + COUNTERS)
            except OSError as fault:
                raise PeerFault(f"control/head.json cannot be written: {fault.strerror}; no heartbeat is sent") from fault
        return self._counter

    def heartbeat(self, counter: int) -> bytes:
        """The Kafka message that vouches for everything up to now."""
        return self.log.heartbeat(counter, time.time_ns()).encode(self.keys.key_id, self.keys.sign)

    async def close(self) -> None:
        """Let go of the journal."""
        await self._run(self._journal.close)
        self._thread.shutdown()


def _digest(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(request), sort_keys=True).encode()).hexdigest()
