"""Columns of an Arrow table as numbers and codes, and texts by what is asked once for each distinct one."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_CODES_MAX: Final = 1 << 62


def numbers_of(rows: pa.Table, name: str, kind: type[Any] = np.uint64) -> NDArray[Any]:
    """A column of whole numbers."""
    return np.asarray(rows[name].to_numpy(), kind)


def times_of(rows: pa.Table) -> NDArray[np.int64]:
    """When each row was: microseconds since 1970."""
    return np.asarray(rows["time"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy(), np.int64)


def plain_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A text column without its dictionary."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def text_of(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """A text column as one array with one dictionary."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.utf8()).dictionary_encode()
    if column.num_chunks == 0:
        return constant_of("", 0)
    return column.unify_dictionaries().combine_chunks()


def indices_of(text: pa.DictionaryArray) -> NDArray[np.int32]:
    """Which text of the dictionary each row has."""
    return np.asarray(text.indices.to_numpy(zero_copy_only=False), np.int32)


def constant_of(value: str, rows: int) -> pa.DictionaryArray:
    """The same text in every row."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value], pa.utf8()))


def of_values(text: pa.DictionaryArray, what: Any) -> NDArray[np.bool_]:
    """`what` of each distinct text."""
    return np.array([what(value) for value in text.dictionary.to_pylist()], np.bool_)


def recoded_by(text: pa.DictionaryArray, what: Any) -> pa.DictionaryArray:
    """Each text replaced by `what` of it, which is asked once for each distinct one in use."""
    used, back = np.unique(indices_of(text), return_inverse=True)
    values = text.dictionary.take(pa.array(used)).to_pylist()
    return pa.array([what(value) for value in values], pa.utf8()).dictionary_encode().take(pa.array(back.astype(np.int32)))


def before_of(text: pa.DictionaryArray, mark: str) -> pa.DictionaryArray:
    """Each text up to the first `mark`, or all of it. Made of the dictionary and by Arrow, since most of its texts may differ
    only in what is behind the mark."""
    firsts = pc.list_element(pc.split_pattern(text.dictionary, mark, max_splits=1), 0).dictionary_encode()
    return pa.DictionaryArray.from_arrays(firsts.indices.take(text.indices), firsts.dictionary)


def coded_of(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], int]:
    """A number for each distinct value, and how many there are."""
    values, back = np.unique(column.to_numpy(), return_inverse=True)
    return back.astype(np.int64), len(values)


def combined_of(columns: Sequence[tuple[NDArray[Any], int]]) -> NDArray[np.int64]:
    """One number for each row, equal where all columns are."""
    codes, size = columns[0][0].astype(np.int64), max(1, columns[0][1])
    for more, distinct in columns[1:]:
        if size * max(1, distinct) >= _CODES_MAX:
            values, codes = np.unique(codes, return_inverse=True)
            size = len(values)
        codes, size = codes * max(1, distinct) + more, size * max(1, distinct)
    return codes


def all_said(text: pa.DictionaryArray) -> bool:
    """Whether no row is empty."""
    return bool(of_values(text, bool)[indices_of(text)].all())
