"""One sink's turn of mind: a fault or an answer in, what to do next out. No clock, no socket, no file.

    nothing is read         Look, at most once in POLL_S while nothing is new
    events wait             Send the next batch, in their order; the same bytes again until the sink has taken them
    a batch was taken       Save the cursor, where an item of it is whole; only then the next batch
    look, send, save fail   Wait, from RETRY_S doubling to the sink's own longest pause, and the same again

One batch is out at a time, so nothing overtakes anything. What is held is one look (ROWS_MAX rows, or one frame) and one batch.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from pipeline.core.ocsf import Alert
from pipeline.core.siem.choice import Item
from pipeline.core.siem.cursor import Cursor

POLL_S: Final = 1.0
RETRY_S: Final = 0.5
BATCH_EVENTS_MAX: Final = 500
BATCH_BYTES_MAX: Final = 1 << 20
"""Bytes of the events of one batch, before a transport frames or packs them: a single event is far smaller."""


@dataclass(frozen=True, slots=True)
class Look:
    """Read what is new, by the cursor; then `found`, or `unread` with why not."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What is sent at once: events as JSON, and the keys by which their order is kept."""

    events: tuple[bytes, ...]
    alerts: tuple[Alert, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Hand a batch to the sink; then `taken`, or `untaken` with why not."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Save:
    """Write the cursor; then `saved`, or `unsaved` with why not."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at this time."""

    until_s: float


Command: TypeAlias = Look | Send | Save | Wait


@dataclass(slots=True)
class Figures:
    """What a sink has done since the process started."""

    sent: int = 0
    batches: int = 0
    bytes: int = 0
    tries: int = 0
    """Tries in vain."""
    waits_for: str = ""
    """Why it does not go on; empty while it does."""
    since_s: float = 0.0
    """Since when."""
    last_error: str = ""
    last_error_s: float = 0.0


@dataclass(slots=True)
class Feeder:
    """Feeds one sink. `pack(alert)` makes the bytes of an event. Times are seconds since 1970."""

    cursor: Cursor
    pack: Callable[[Alert], bytes]
    retry_s: float
    figures: Figures = field(default_factory=Figures)
    looked_s: float = 0.0
    """When the store last answered."""
    _items: deque[Item] = field(default_factory=deque)
    _at: int = 0
    """How many events of the first item were taken."""
    _batch: Batch | None = None
    _whole: int = 0
    """Items that are whole once the batch was taken."""
    _dirty: bool = False
    _due_s: float = 0.0
    _pause_s: float = 0.0

    def next(self, now_s: float) -> Command:
        """What to do now. Asked again, it is the same until an answer has come."""
        if now_s < self._due_s:
            return Wait(self._due_s)
        if self._dirty:
            return Save(self.cursor.encode())
        if self._batch is None and not self._fill():
            return Save(self.cursor.encode()) if self._dirty else Look()
        assert self._batch is not None
        return Send(self._batch)

    def _fill(self) -> bool:
        """Make the next batch of what was read; False when nothing is left. Items without events are marked on the way."""
        while self._items and not self._items[0].alerts:
            self._items.popleft().apply(self.cursor)
            self._dirty = True
        if not self._items:
            return False
        events: list[bytes] = []
        alerts: list[Alert] = []
        size, whole, skip = 0, 0, self._at
        for item in self._items:
            for alert in item.alerts[skip:]:
                data = self.pack(alert)
                if events and (len(events) == BATCH_EVENTS_MAX or size + len(data) > BATCH_BYTES_MAX):
                    self._batch, self._whole = Batch(tuple(events), tuple(alerts)), whole
                    return True
                events.append(data)
                alerts.append(alert)
                size += len(data)
            whole, skip = whole + 1, 0
        self._batch, self._whole = Batch(tuple(events), tuple(alerts)), whole
        return True

    # -- answers -----------------------------------------------------------------------------------------------------

    def found(self, items: Sequence[Item], now_s: float) -> None:
        """What is new, in its order; nothing new is looked for again a little later."""
        assert not self._items, "everything of the last look was sent"
        self._items.extend(items)
        self.looked_s = now_s
        self._goes_on()
        self._due_s = now_s if items else now_s + POLL_S

    def taken(self, now_s: float) -> None:
        """The sink has the batch. A crash from here to `saved` sends it again."""
        batch = self._batch
        assert batch is not None
        self.figures.sent += len(batch.events)
        self.figures.bytes += sum(map(len, batch.events))
        self.figures.batches += 1
        left = len(batch.events)
        for _ in range(self._whole):
            item = self._items.popleft()
            left -= len(item.alerts) - self._at
            self._at = 0
            item.apply(self.cursor)
            self._dirty = True
        self._at += left
        self._batch, self._whole = None, 0
        self._goes_on()
        self._due_s = now_s

    def saved(self, now_s: float) -> None:
        """The cursor is on the disk."""
        self._dirty = False
        self._goes_on()
        self._due_s = now_s

    def failed(self, why: str, now_s: float) -> None:
        """A look, a batch or the cursor could not be done: the same again, a little later each time."""
        own = self.figures
        own.tries += 1
        own.last_error, own.last_error_s = why, now_s
        if not own.waits_for:
            own.since_s = now_s
        own.waits_for = why
        self._pause_s = min(self.retry_s, max(RETRY_S, 2 * self._pause_s))
        self._due_s = now_s + self._pause_s

    def _goes_on(self) -> None:
        self.figures.waits_for = ""
        self._pause_s = 0.0

    # -- words -------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Events that were read and not taken."""
        return sum(len(item.alerts) for item in self._items) - self._at

    def lag_s(self, now_s: float) -> float:
        """How long what is next to be sent has been in the store; while the store does not answer, since it last did."""
        if self._items:
            return max(0.0, now_s - self._items[0].at_us / 10**6)
        return max(0.0, now_s - self.looked_s) if self.figures.waits_for and self.looked_s else 0.0
