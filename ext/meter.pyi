import numpy as np
from numpy.typing import NDArray

_U8 = NDArray[np.uint8]
_U64 = NDArray[np.uint64]
_I32 = NDArray[np.int32]
_I64 = NDArray[np.int64]
_F64 = NDArray[np.float64]

def name_bits(text: str) -> float:
    """Bits of a text: its bytes as UTF-8 times their entropy."""

def decayed(time: _I64, bits: _F64, half: float) -> _F64:
    """The meter after each item, of items in the order of time; `half` in the unit of `time`."""

class Units:
    """Distinct items: at most `pairs` pairs with `units` items, of each pair at most so many names (kind 0) and queries (1)."""

    def __init__(self, pairs: int, units: int, most_names: int, most_queries: int) -> None: ...
    @property
    def pairs(self) -> int:
        """Pairs that are kept."""

    @property
    def units(self) -> int:
        """Items that are kept."""

    @property
    def evicted(self) -> int:
        """Pairs that had to make room."""

    def drop_oldest(self) -> bool:
        """Let go of the pair used least lately, with its items; False where there is none left then."""

    def clear(self) -> None:
        """Forget every pair."""

    def find(self, hashes: _U64, calls: _U64) -> tuple[_I32, _U8]:
        """(slot, whether it is new) of each pair, which is added where it is; `calls` more are counted for it."""

    def add(
        self, slots: _I32, kind: int, hashes: _U64, bits: _F64, time: _I64, refused: _U8, boot: _U64, seq: _U64, changed: _U8
    ) -> None:
        """Take items of one kind; marks in `changed` (by row) where what is kept of a pair is not what it was."""

    def of(self, slot: int) -> tuple[int, _U8, _U64, _I64, _F64, _U8, _U64, _U64]:
        """(calls, kind, hash, time, bits, refused, boot, seq) of a pair. Raises KeyError where there is none."""

    def bits_of(self, slots: _I32) -> tuple[_F64, _F64]:
        """(bits of the names and refused queries, bits of the other queries) of each pair."""

    def asked_before(self, slot: int, time: int) -> float:
        """Bits of a pair's queries that were let out first before a time; 0 where there is none."""
