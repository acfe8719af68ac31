"""Aggregate rows as numbers: what detectors loop over is a group of rows, never a row."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.core.detect.coded import indices_of, text_of

Ints = NDArray[np.int64]
COUNT_MAX = 1 << 53


def numbers(rows: pa.Table, name: str) -> Ints:
    """A column of counts or times, in its own unit. A count above 2^53 is cut to that: sums of some are still whole numbers."""
    column = rows[name].combine_chunks()
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype == np.uint64:
        values = np.minimum(values, np.uint64(COUNT_MAX))
    whole: Ints = values.astype(np.int64, copy=False)
    return whole


def codes(rows: pa.Table, name: str) -> tuple[Ints, list[str]]:
    """A column of texts: which of these distinct texts each row has."""
    text = text_of(rows[name])
    return indices_of(text).astype(np.int64), text.dictionary.to_pylist()


def groups(keys: Sequence[Ints]) -> tuple[Ints, Ints]:
    """Rows with equal keys together: an order of the rows, and where each group begins in it (and, last, where all end)."""
    order = np.lexsort(tuple(reversed(keys)))
    if not len(order):
        return order, np.zeros(1, np.int64)
    changes = np.zeros(len(order), bool)
    changes[0] = True
    for key in keys:
        ordered = key[order]
        changes[1:] |= ordered[1:] != ordered[:-1]
    return order, np.append(np.flatnonzero(changes), len(order))


def each_group(keys: Sequence[Ints]) -> Iterator[tuple[tuple[int, ...], Any]]:
    """(key, the rows that have it), ordered by key."""
    order, starts = groups(keys)
    if len(starts) < 2:
        return
    heads = order[starts[:-1]]
    values = zip(*(key[heads].tolist() for key in keys), strict=True)
    edges = starts.tolist()
    for value, first, last in zip(values, edges, edges[1:], strict=False):
        yield value, order[first:last]
