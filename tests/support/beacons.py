"""RITA's beacon score, too simple to be wrong: the oracle of `ext.beacon`."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise


def regular(values: Sequence[float], default: float) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    middle = statistics.median(ordered)
    low = statistics.median(ordered[:half]) if half else middle
    high = statistics.median(ordered[-half:]) if half else middle
    skew = 0.0 if high - low < 10 or middle in (low, high) else (low + high - 2 * middle) / (high - low)
    mad = statistics.median(abs(value - middle) for value in ordered)
    return ((1 - abs(skew)) + (max(0.0, (middle - mad) / middle) if middle >= 1 else default)) / 2


def even(bins: Sequence[int]) -> float:
    mean = sum(bins) / 24
    score = max(0.0, 1 - statistics.pstdev(bins) / mean)
    bars = [bar for bar in bins if bar]
    if len(bars) >= 11:
        step = math.ceil(0.05 * max(bars))
        two = sum(count for _, count in Counter(bar // step for bar in bars).most_common(2))
        score = max(score, two / (len(bars) - 1))
    return min(1.0, score)


def lasting(bins: Sequence[int], share: float) -> float:
    if sum(bar > 0 for bar in bins) < 6:
        return 0.0
    text = "".join("x" if bar else " " for bar in bins) * 2
    longest = min(24, max(map(len, text.split())))
    return min(1.0, max(math.ceil(1000 * share) / 1000, math.ceil(1000 * longest / 12) / 1000))


def bins_of(seconds: Sequence[int], low: int, high: int) -> list[int]:
    bins = [0] * 24
    for second in seconds:
        bins[max(0, min(23, math.floor((second - low) / ((high - low) / 24))))] += 1
    return bins


def rita(seconds: Sequence[int], sizes: Sequence[float], low: int, high: int) -> tuple[float, ...] | None:
    unique = sorted(set(seconds))
    if len(unique) < 4:
        return None
    bins = bins_of(seconds, low, high)
    parts = (
        regular([b - a for a, b in pairwise(unique)], 1),
        regular(sizes, 0),
        lasting(bins, (unique[-1] - unique[0]) / (high - low)),
        even(bins),
    )
    return (sum(parts) / 4, *parts)


def wilson(hits: int, count: int) -> float:
    z = 1.96
    share = hits / count
    margin = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return (share + z * z / (2 * count) - margin) / (1 + z * z / count)
