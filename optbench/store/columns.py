"""Columns of tables as NumPy arrays.

Columns are read from Arrow's buffers. Arrow's own conversions to NumPy, and Arrow scalars made from Python values,
would import pandas, and this import takes longer than the rest of a report.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def numbers(column: pa.ChunkedArray | pa.Array) -> NDArray[np.float64]:
    """Return a column of numbers as float64, (rows,), with NaN for null."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(whole):
        return np.empty(0)
    return np.where(known(whole), _buffer(whole.cast(pa.float64()), np.float64), math.nan)


def known(column: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
    """Return whether each value of a column is present, (rows,); False where null."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(whole):
        return np.empty(0, np.bool_)
    found: NDArray[np.bool_] = _buffer(pc.is_valid(whole).cast(pa.uint8()), np.uint8).astype(np.bool_)
    return found


def vectors(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return a column of lists of K numbers without nulls as float64, (rows, K)."""
    whole = column.combine_chunks()
    return numbers(whole.flatten()).reshape(len(whole), -1) if len(whole) else np.empty((0, 0))


def codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """Encode a column of text: return one code per row, (rows,), with -1 for null, and the texts, indexed by code."""
    encoded = column.combine_chunks().dictionary_encode()
    found = numbers(encoded.indices)
    return np.where(np.isnan(found), -1.0, found).astype(np.int64), encoded.dictionary.to_pylist()


def _buffer(array: pa.Array, dtype: type[np.generic]) -> NDArray[Any]:
    return np.frombuffer(array.buffers()[1], dtype)[array.offset : array.offset + len(array)]
