"""Which frames somebody has taken already: of each lane the newest numbers, exactly, in a few bits each.

    lane        ... 4 5 6 7 8 9 10      everything more than WINDOW below the highest number counts as taken
    taken       1 1 1 1 0 1 1 . 1

A frame comes far out of turn only where its lane is stored far beyond a missing one (LANE_AHEAD_MAX), or where a worker was
killed between a batch's rows and what it says of them (ENTRIES_MAX frames): WINDOW is more than both together.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.core.batch import ENTRIES_MAX
from pipeline.core.parcel import Piece
from schemas.frame import Lane
from schemas.limits import LANE_AHEAD_MAX

WINDOW: Final = 32_768
LANES_MAX: Final = 50_000
"""Lanes that are remembered, those heard of last. A frame of a forgotten one counts as new."""

PIECES_MAX: Final = 65_536
"""Pieces behind the first one of a frame that are remembered."""

assert WINDOW > LANE_AHEAD_MAX + ENTRIES_MAX


class Numbers:
    """Frame numbers of one lane."""

    __slots__ = ("_bits", "_top")

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._top = 0
        self._bits = 0
        for number in sorted(numbers):
            self.add(number)

    def __contains__(self, number: int) -> bool:
        back = self._top - number
        return back >= WINDOW or (back >= 0 and bool(self._bits >> back & 1))

    def there(self, numbers: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of many numbers are among them."""
        packed = np.frombuffer(self._bits.to_bytes(WINDOW // 8, "little"), np.uint8)
        bits = np.unpackbits(packed, bitorder="little").astype(bool)
        back = self._top - numbers.astype(np.int64)
        there: NDArray[np.bool_] = (back >= 0) & ((back >= WINDOW) | bits[np.clip(back, 0, WINDOW - 1)])
        return there

    def add(self, number: int) -> None:
        """Remember a number."""
        if number > self._top:
            self._bits = (self._bits << min(number - self._top, WINDOW)) & ((1 << WINDOW) - 1) | 1
            self._top = number
        elif self._top - number < WINDOW:
            self._bits |= 1 << self._top - number

    @property
    def top(self) -> int:
        """The highest number."""
        return self._top


class Seen:
    """The frames, and pieces of frames, that the detectors of one partition have taken."""

    def __init__(self) -> None:
        self._whole: dict[Lane, Numbers] = {}
        self._first: dict[Lane, Numbers] = {}
        self._more: dict[tuple[Lane, int, int], None] = {}
        self.evicted = 0
        """Lanes that had to make room."""

    def begin(self, whole: Mapping[Lane, Numbers]) -> None:
        """Everything of these frames was taken from the store."""
        self._whole = dict(whole)

    def __contains__(self, piece: Piece) -> bool:
        if (whole := self._whole.get(piece.lane)) is not None and piece.frame_no in whole:
            return True
        if piece.piece:
            return (piece.lane, piece.frame_no, piece.piece) in self._more
        first = self._first.get(piece.lane)
        return first is not None and piece.frame_no in first

    def add(self, piece: Piece) -> None:
        """Its rows were taken."""
        if piece.piece:
            self._more[piece.lane, piece.frame_no, piece.piece] = None
            while len(self._more) > PIECES_MAX:
                del self._more[next(iter(self._more))]
            return
        numbers = self._first.pop(piece.lane, None) or Numbers()
        numbers.add(piece.frame_no)
        self._first[piece.lane] = numbers
        while len(self._first) > LANES_MAX:
            del self._first[next(iter(self._first))]
            self.evicted += 1


class Exactly:
    """Frame numbers of one lane, all of them and no others."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = np.array(list(numbers), np.uint64)

    def there(self, numbers: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of many numbers are among them."""
        return np.isin(numbers, self._numbers)


def of_frames(rows: pa.Table, frames: Mapping[Lane, Numbers] | Mapping[Lane, Exactly]) -> NDArray[np.bool_]:
    """Which records are of one of these frames, by the columns that the store has of it: `enforcer`, `enforcer_boot`, ..."""
    if not rows.num_rows:
        return np.zeros(0, bool)
    enforcer = rows.column("enforcer").unify_dictionaries().combine_chunks()
    if isinstance(enforcer, pa.ChunkedArray):
        enforcer = enforcer.chunk(0)
    names = enforcer.dictionary.to_pylist()
    parts = [enforcer.indices.to_numpy(), *(rows.column(name).to_numpy() for name in ("enforcer_boot", "partition"))]
    coded = [np.unique(part, return_inverse=True) for part in parts]
    at = np.zeros(rows.num_rows, np.int64)
    for values, code in coded:
        at = at * len(values) + code
    (hosts, _), (boots, _), (partitions, _) = coded
    numbers, kept = rows.column("frame_no").to_numpy(), np.zeros(rows.num_rows, bool)
    for lane_at in np.unique(at):
        mine = np.flatnonzero(at == lane_at)
        rest, partition_at = divmod(int(lane_at), len(partitions))
        host_at, boot_at = divmod(rest, len(boots))
        lane = Lane(
            host=names[int(hosts[host_at])], host_boot=int(boots[boot_at]), partition=int(partitions[partition_at])
        )
        if (known := frames.get(lane)) is not None:
            kept[mine] = known.there(numbers[mine])
    return kept
