"""When an insert is due: the batch is full, or its first entry has waited for `quiet_ns`.

Pure: the clock comes in as an argument (monotonic nanoseconds). While one batch is being inserted the next one fills, so that a
slow store makes larger batches, not more of them.
"""

from typing import Final, Generic, TypeVar

from schemas.limits import FRAME_INFLATED_BYTES_MAX, MIB
from schemas.store import INSERT_RECORDS_MAX

T = TypeVar("T")

BATCH_BYTES_MAX: Final = 192 * MIB
"""Decompressed bytes of one batch. Reaching it: the batch is full, whatever its records."""

ENTRIES_MAX: Final = 20_000
"""Messages of one batch, those that need no row included. Reaching it: the batch is full."""

assert BATCH_BYTES_MAX > FRAME_INFLATED_BYTES_MAX


class Batch(Generic[T]):
    """Entries in offset order, until they are cut off together."""

    def __init__(self, *, records_max: int, quiet_ns: int) -> None:
        self._records_max = min(records_max, INSERT_RECORDS_MAX)
        self._quiet_ns = quiet_ns
        self._entries: list[T] = []
        self._since_ns: int | None = None
        self.rows = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def takes(self, rows: int, size: int) -> bool:
        """Whether an entry of `rows` rows and `size` bytes may still come in; an empty batch takes anything.

        More rows than INSERT_RECORDS_MAX would not be one block, and so not all or nothing.
        """
        if not self._entries:
            return True
        return (
            self.rows < self._records_max
            and self.rows + rows <= INSERT_RECORDS_MAX
            and self.bytes + size <= BATCH_BYTES_MAX
            and len(self._entries) < ENTRIES_MAX
        )

    def add(self, entry: T, rows: int, size: int, now_ns: int) -> None:
        """Take an entry in. Rows are what the store will write for it."""
        assert self.takes(rows, size)
        if self._since_ns is None:
            self._since_ns = now_ns
        self._entries.append(entry)
        self.rows += rows
        self.bytes += size

    @property
    def full(self) -> bool:
        """Whether waiting for more is pointless."""
        return self.rows >= self._records_max or self.bytes >= BATCH_BYTES_MAX or len(self._entries) >= ENTRIES_MAX

    def due_ns(self) -> int | None:
        """When the batch is due at the latest; None while it is empty."""
        return None if self._since_ns is None else self._since_ns + self._quiet_ns

    def due(self, now_ns: int) -> bool:
        """Whether to cut now."""
        at = self.due_ns()
        return self.full or (at is not None and now_ns >= at)

    def cut(self) -> list[T]:
        """Everything so far, and start anew."""
        entries, self._entries = self._entries, []
        self._since_ns, self.rows, self.bytes = None, 0, 0
        return entries
