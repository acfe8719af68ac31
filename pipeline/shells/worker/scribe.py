"""Writes what control has said into the store, each entry once, in the order of the epochs.

    the log was read whole    what is live and not stored yet; what else was in the log, where its signature holds; and of what
                              the store has as live and the log has not, that it is gone
    an entry came later       that entry

Rows are written in ascending order, so that everything up to the highest epoch in the store is there, whoever wrote it: several
workers may write at a time, and one that starts again goes on where any other was. A crash anywhere loses what is in memory
here, and the next start reads it from the log.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pipeline.shells.worker import metrics
from pipeline.shells.worker.sink import StoreAway, StoreRefuses
from schemas.control import Entry, parse_entry
from schemas.errors import FrameFault

log = logging.getLogger(__name__)

T = TypeVar("T")

WAITING_MAX: Final = 100_000
"""Entries that wait for the store. Beyond it they are taken from what is live when the store is back; of what came and went
meanwhile only its end is written."""

ROWS_MAX: Final = 50_000
"""Rows of one insert."""

RETRY_S: Final = 0.2
RETRY_MAX_S: Final = 5.0

SECRETS: Final = frozenset({"secret"})
"""Fields of a value that are not written, hashes though they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What is live by a heartbeat's digest."""

    entries: Sequence[Entry]
    """In the order of their epochs."""
    epoch: int
    time_ns: int
    """When the heartbeat was made."""
    keys: Mapping[bytes, bytes]
    """The control keys that are accepted, key id -> raw public key."""


class Ledger(Protocol):
    """What the scribe needs of `sink`."""

    def control_known(self, first: Entry | None) -> tuple[int, int]:
        """The journal that these entries belong to, and the highest epoch of it that is stored."""

    def keep_entries(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store entries."""

    def control_count(self, journal: int, epoch: int) -> int:
        """How many keys are live in the store of which nothing above `epoch` was said."""

    def control_keys(self, journal: int, epoch: int) -> list[str]:
        """Those keys."""


class Scribe:
    """Owns a thread for its own connection, so that it does not wait behind the inserts of frames."""

    def __init__(self, ledger: Ledger, *, whole: Callable[[], Whole | None]) -> None:
        """`whole()` is what is live now; None while the log is not whole."""
        self._ledger = ledger
        self._whole = whole
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scribe")
        self._something = asyncio.Event()
        self._behind = False
        self._past: list[tuple[Entry, bytes]] = []
        self._new: list[Entry] = []
        self._known = asyncio.Event()
        self._journal = 0
        self.waits_for = ""
        """Why rows are tried again; empty when none are."""
        self.written = 0
        """The highest epoch that is stored, as far as this worker has seen to it."""

    def catch_up(self, past: Iterable[tuple[Entry, bytes]]) -> None:
        """The log was read whole. `past` is what else was in it, entries beside their messages, which nobody has verified."""
        self._past = list(past)
        self._behind = True
        self._something.set()

    def add(self, entry: Entry) -> None:
        """A verified entry came behind what was read."""
        self._new.append(entry)
        if len(self._new) > WAITING_MAX:
            self._new.clear()
            self._behind = True
        self._something.set()

    async def journal(self) -> int:
        """The journal that rows belong to; returns once it is known."""
        await self._known.wait()
        return self._journal

    async def run(self) -> None:
        """Write for ever; returns only by cancellation. Raises OperatorFault."""
        while True:
            await self._something.wait()
            self._something.clear()
            whole = self._whole() if self._behind else None
            if whole is not None:
                past, self._past = self._past, []
                new, self._new = self._new, []
                self._behind = False
                self._journal, self.written = await self.stored("control entries", self._catch_up, whole, past, new)
                self._known.set()
            elif self._new and not self._behind:
                new, self._new = self._new, []
                rows = [entry_row(entry, self._journal) for entry in new]
                await self.stored("control entries", self._ledger.keep_entries, rows)
                self.written = new[-1].epoch
            if self._new and not self._behind:
                self._something.set()

    async def stored(self, what: str, work: Callable[..., T], *arguments: Any) -> T:
        """Do `work` in the scribe's thread, again and again until the store takes it. Raises OperatorFault."""
        wait_s = RETRY_S
        while True:
            try:
                done = await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*arguments))
            except (StoreAway, StoreRefuses) as fault:
                metrics.RETRIES.inc()
                if not self.waits_for:
                    log.warning("%s: %s; trying again", what, fault)
                self.waits_for = f"{what}: {fault}"
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_MAX_S)
            else:
                self.waits_for = ""
                return done

    def _catch_up(self, whole: Whole, past: Sequence[tuple[Entry, bytes]], new: Sequence[Entry]) -> tuple[int, int]:
        journal, known = self._ledger.control_known(whole.entries[0] if whole.entries else None)
        found = {entry.epoch: entry for entry in whole.entries if entry.epoch > known}
        candidates = [(entry, data) for entry, data in past if entry.epoch > known and entry.epoch not in found]
        found |= {entry.epoch: entry for entry in _verified(candidates, whole)}
        found |= {entry.epoch: entry for entry in new if entry.epoch > known}
        rows = [entry_row(found[epoch], journal) for epoch in sorted(found)]
        for start in range(0, len(rows), ROWS_MAX):
            self._ledger.keep_entries(rows[start : start + ROWS_MAX])
        if self._ledger.control_count(journal, whole.epoch) != len(whole.entries):
            live = {entry.key for entry in whole.entries}
            gone = [key for key in self._ledger.control_keys(journal, whole.epoch) if key not in live]
            for start in range(0, len(gone), ROWS_MAX):
                self._ledger.keep_entries([_gone_row(key, journal, whole) for key in gone[start : start + ROWS_MAX]])
        return journal, max(known, whole.epoch, *found)


def _verified(past: Sequence[tuple[Entry, bytes]], whole: Whole) -> list[Entry]:
    """The heartbeat's digest vouches for what is live, and for nothing else that was in the log."""
    checks = {key_id: Ed25519PublicKey.from_public_bytes(public).verify for key_id, public in whole.keys.items()}
    good = []
    for entry, data in past:
        sealed = parse_entry(data)
        check = checks.get(sealed.key_id)
        if check is not None and entry.epoch <= whole.epoch:
            with contextlib.suppress(FrameFault):
                sealed.verify(check)
                good.append(entry)
    return good


def entry_row(entry: Entry, journal: int) -> dict[str, Any]:
    """An entry as a row of `CONTROL_SCHEMA`."""
    value = "" if entry.value is None else json.dumps(
        {name: one for name, one in entry.value.items() if name not in SECRETS}, ensure_ascii=False, sort_keys=True
    )  # fmt: skip
    return {
        "journal": journal, "epoch": entry.epoch, "key": entry.key, "kind": entry.kind, "name": entry.name, "value": value,
        "time": entry.time_ns // 1000, "actor": entry.actor, "tenant": entry.tenant,
    }  # fmt: skip


def _gone_row(key: str, journal: int, whole: Whole) -> dict[str, Any]:
    """Nobody saw who removed it; a heartbeat says that it is not live any more."""
    entry = Entry(epoch=whole.epoch, key=key, time_ns=whole.time_ns, actor="", value=None)
    return entry_row(entry, journal)
