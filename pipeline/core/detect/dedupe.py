"""Which frames were taken, so that rows that are sent twice count once.

    lane:  1..17  19..19  23..40        a frame whose rows all lie in other partitions leaves a gap, which stays

Ranges are few where most frames have rows here, and many where few have: of more than LANE_AHEAD_MAX in one lane the lowest
gap counts as taken, since a frame that far behind its lane is not sent any more.
"""

from bisect import bisect_right
from collections import OrderedDict

import numpy as np
import pyarrow as pa

from schemas.limits import DETECT_LANES_MAX, LANE_AHEAD_MAX

_LANE = ["lane_host", "lane_boot", "lane_partition"]


class Dedupe:
    """The frames whose rows were taken, for one partition and subject of `egress`: all rows of a frame come in one table."""

    def __init__(self, lanes: int = DETECT_LANES_MAX, ranges: int = LANE_AHEAD_MAX) -> None:
        self._lanes_max, self._ranges_max = lanes, ranges
        self._lanes: OrderedDict[tuple[str, int, int], _Ranges] = OrderedDict()
        self.evicted = 0
        """Lanes that had to make room: a frame of theirs would be taken again."""

    @property
    def entries(self) -> int:
        """Ranges that are kept."""
        return sum(len(ranges) for ranges in self._lanes.values())

    def fresh(self, table: pa.Table) -> pa.Table:
        """The rows of frames that were not taken before; from now on they are."""
        keys = [*_LANE, "frame_no"]
        plain = table.select(keys).set_column(0, "lane_host", table["lane_host"].cast(pa.utf8()))
        frames = plain.append_column("row", pa.array(np.arange(table.num_rows))).group_by(keys, use_threads=False)
        found = frames.aggregate([("row", "list")]).to_pydict()
        wanted: list[list[int]] = []
        old = False
        for host, boot, partition, number, rows in zip(*(found[name] for name in [*keys, "row_list"]), strict=True):
            if self._lane((host, boot, partition)).add(number):
                wanted.append(rows)
            else:
                old = True
        if not old:
            return table
        return table.take(pa.array(np.sort(np.concatenate([np.array(rows) for rows in wanted])) if wanted else [], pa.int64()))

    def clear(self) -> None:
        """Forget everything: the partition is another's now."""
        self._lanes.clear()

    def _lane(self, lane: tuple[str, int, int]) -> "_Ranges":
        ranges = self._lanes.pop(lane, None)
        if ranges is None:
            ranges = _Ranges(self._ranges_max)
            if len(self._lanes) >= self._lanes_max:
                self._lanes.popitem(last=False)
                self.evicted += 1
        self._lanes[lane] = ranges  # behind all others: used last
        return ranges


class _Ranges:
    """Whole numbers as ranges, `first` and `last` of each, in order."""

    __slots__ = ("_first", "_last", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._first: list[int] = []
        self._last: list[int] = []

    def __len__(self) -> int:
        return len(self._first)

    def add(self, number: int) -> bool:
        """Whether a number is new."""
        first, last = self._first, self._last
        at = bisect_right(first, number)  # ranges before `at` begin at or below it
        if at and number <= last[at - 1]:
            return False
        joins_low = at > 0 and last[at - 1] == number - 1
        joins_high = at < len(first) and first[at] == number + 1
        if joins_low and joins_high:
            last[at - 1] = last[at]
            del first[at], last[at]
        elif joins_low:
            last[at - 1] = number
        elif joins_high:
            first[at] = number
        else:
            first.insert(at, number)
            last.insert(at, number)
            if len(first) > self._most:
                del first[1], last[0]
        return True
