from typing import Any

import numpy as np
import numpy.typing as npt

class TraceBook:
    """Traces and their calls. One thread. The arrays are the slabs' own: read them, and write `said` and `flags` only."""

    ids: npt.NDArray[np.uint64]
    head: npt.NDArray[np.int32]
    count: npt.NDArray[np.int32]
    unseen: npt.NDArray[np.int32]
    touched: npt.NDArray[np.int64]
    flags: npt.NDArray[np.uint8]
    boot: npt.NDArray[np.uint64]
    seq: npt.NDArray[np.uint64]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    parent: npt.NDArray[np.uint64]
    said: npt.NDArray[np.uint64]
    who: npt.NDArray[np.int32]
    enforcer: npt.NDArray[np.int32]
    state: npt.NDArray[np.uint8]
    following: npt.NDArray[np.int32]
    traces: int
    calls: int
    forgotten: int
    traces_max: int
    calls_max: int
    per_trace_max: int

    def __init__(self, traces_max: int, calls_max: int, per_trace_max: int, gone_max: int, key: int) -> None:
        """`key` is secret to callers; `gone_max` is how many ids of traces that were put away are remembered, about."""

    def clear(self) -> None:
        """Forget everything."""

    def add(
        self, ids: Any, parents: Any, kind: Any, boot: Any, seq: Any, time: Any, duration: Any, verdict: Any, outcome: Any,
        mode: Any, who: Any, enforcer: Any, now_us: int,
    ) -> npt.NDArray[np.int32]:
        """Take records (decisions, effects, losses); returns the traces that they touch, each once, in order of their first.

        `seq` is the call's, `ids` and `parents` are 16 and 8 bytes a record. A decision that lets its call out and has an
        outcome is an effect too, `duration` (us) after its time. There must be room: see `room`.
        """

    def room(self, records: int) -> bool:
        """Whether so many records may be taken, whatever they are."""

    def gather(self, slots: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """All calls of some traces: (their places in the slab, for each the number of its trace in `slots`)."""

    def settle(self, until_us: int) -> npt.NDArray[np.int32]:
        """The traces that nothing has touched after `until_us` and that were not said to be settled before; they are now."""

    def oldest(self, traces: int, calls: int) -> npt.NDArray[np.int32]:
        """The traces that were touched longest ago: enough that so many traces and so many calls could go."""

    def drop(self, slots: npt.NDArray[np.int32]) -> None:
        """Put traces away; their ids are remembered as long as there is room."""
