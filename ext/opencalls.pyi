import numpy as np
from numpy.typing import NDArray

_U8 = NDArray[np.uint8]
_U64 = NDArray[np.uint64]
_I32 = NDArray[np.int32]
_I64 = NDArray[np.int64]

class OpenCalls:
    """Calls that were let out and whose end has not come, at most `capacity`: the one not heard of for longest makes room."""

    def __init__(self, capacity: int) -> None: ...
    @property
    def entries(self) -> int:
        """Calls that are kept, those included of which only an end has come so far."""

    @property
    def evicted(self) -> int:
        """Calls that had to make room: what comes of them later counts for nobody."""

    def decided(
        self, boot: _U64, seq: _U64, place: _I32, time: _I64, bytes_out: _U64, bytes_in: _U64, over: _U8, more_out: _U64,
        more_in: _U64, back: _U8,
    ) -> None:  # fmt: skip
        """Keep decisions whose calls are not `over`. Fills in the last three where a call's end came before its decision: the
        bytes on top of the decision's own, and whether it took the verdict back."""

    def ended(
        self, boot: _U64, seq: _U64, bytes_out: _U64, bytes_in: _U64, last: _U8, back: _U8, place: _I32, time: _I64,
        decision: _I32,
    ) -> None:  # fmt: skip
        """Take ends. The bytes become those on top of what was known; `place` and `time` become the decision's, or -1;
        `decision` its row in the last `decided`, or -1."""

    def places(self, used: _U8) -> None:
        """Mark the places that calls are kept for."""

    def renumber(self, number: _I32) -> None:
        """Give each place another number."""
