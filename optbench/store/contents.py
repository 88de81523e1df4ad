"""Checks of the values read from a run's tables, because a file may come from an untrusted source.

The schema covers types, columns and nulls. This module checks values: counts in range, fractions between 0 and 1, known
statuses, paths inside the run directory, and one row per trial. Measured values may be NaN or infinite, which readers
treat as undefined; settings are finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optbench.errors import StoreError
from optbench.store.columns import codes, numbers

Bounds: TypeAlias = tuple[float, float]


class ContentError(StoreError):
    """A readable table with impossible values."""


WHOLE: Bounds = (0, 2**53)
"""Bounds of whole numbers. Within these bounds, float64 represents every whole number exactly."""
SEED: Bounds = (0, 2**63 - 1)
MOST_TASKS = 10_000
"""Maximum number of tasks in a suite."""
CLASSES: Bounds = (0, 999)
"""Bounds of class labels, which are narrow because readers build matrices of this size."""
NUMBER: Bounds = (-1e100, 1e100)
"""Bounds of measured values, which include the squares of float32 values. Sums within these bounds do not overflow."""
AMOUNT: Bounds = (0, 1e100)
SHARE: Bounds = (0, 1)
ROUNDING = 1e-6

_BOUNDS: Mapping[str, Bounds] = {
    "seed": SEED,
    "after_task": (0, MOST_TASKS),
    "task": (1, MOST_TASKS),
    "earlier_task": (1, MOST_TASKS),
    "class_a": CLASSES,
    "class_b": CLASSES,
    "label": CLASSES,
    "accuracy": SHARE,
    "validation_accuracy": SHARE,
    "eval_accuracy": SHARE,
    "online_accuracy": SHARE,
    "dead": SHARE,
    "dormant": SHARE,
    "majority": SHARE,
    "bits_per_byte": AMOUNT,
    "validation_bits_per_byte": AMOUNT,
    "eval_bits_per_byte": AMOUNT,
    "keep": SHARE,
    "cosine": (-1, 1),
    "cosine_gradient": (-1, 1),
    "cosine_sign": (-1, 1),
    "cosine_polar": (-1, 1),
    "stable_rank": AMOUNT,
    "relative_size": AMOUNT,
    "angle": (0, 180),
    "train_seconds": AMOUNT,
    "optimizer_seconds": AMOUNT,
    "evaluation_seconds": AMOUNT,
}
"""Bounds by column, for all tables. The bounds of any other column are `WHOLE` for whole numbers and `NUMBER` for
floating-point numbers."""
_SET = ("keep",)
"""Numeric columns that contain settings. Settings must be finite and are checked without a tolerance for rounding."""


def _is_checkpoint(text: str) -> bool:
    place = Path(text)  # split at this system's path separators
    inside = len(place.parts) == 2 and place.parts[0] == "checkpoints" and place.parts[1] != ".."
    return inside and place.suffix == ".safetensors" and "\0" not in text


_TEXTS: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "status": (("ok", "diverged", "failed").__contains__, "ok, diverged or failed"),
    "checkpoint": (_is_checkpoint, "a .safetensors file in the run's own checkpoints/"),
}
ONCE = "trials"
"""The table with one row per trial."""


def checked(file: Path, table: pa.Table) -> pa.Table:
    """Return the table unchanged if all of its values are possible.

    file: the path of the table, whose stem is the table's name.

    Raises:
        ContentError: a value is impossible.
    """
    table.validate(full=True)  # also checks that text is UTF-8
    for name, kind in zip(table.schema.names, table.schema.types, strict=True):
        if pa.types.is_integer(kind):
            _check_whole(file, name, table[name])
        elif pa.types.is_floating(kind):
            _check_numbers(file, name, table[name])
        elif pa.types.is_list(kind):
            _check_vectors(file, name, table[name])
        elif name in _TEXTS:
            _check_texts(file, name, table[name])
    if file.stem == ONCE:
        _check_once(file, table["trial"])
    return table


def _check_whole(file: Path, name: str, column: pa.ChunkedArray) -> None:
    low, high = _BOUNDS.get(name, WHOLE)
    found = pc.min_max(column).as_py()
    if found["min"] is not None and not low <= found["min"] <= found["max"] <= high:
        wrong = ((i, v) for i, v in enumerate(column.to_pylist()) if v is not None and not low <= v <= high)
        raise _error(file, name, *next(wrong), f"a whole number from {low} to {high}")


def _check_numbers(file: Path, name: str, column: pa.ChunkedArray) -> None:
    low, high = _BOUNDS.get(name, NUMBER)
    values = numbers(column)
    if name in _SET:
        outside = ~((values >= low) & (values <= high))
    else:
        outside = np.isfinite(values) & ((values < low - ROUNDING) | (values > high + ROUNDING))
    wrong = np.flatnonzero(outside)
    if len(wrong):
        raise _error(file, name, int(wrong[0]), float(values[wrong[0]]), f"a number from {low:g} to {high:g}")


def _check_vectors(file: Path, name: str, column: pa.ChunkedArray) -> None:
    """Check that the lists in a column have the same length, are not empty, and contain no nulls."""
    lengths = pc.min_max(pc.list_value_length(column)).as_py()
    if lengths["min"] != lengths["max"] or lengths["min"] == 0:
        found = f"{lengths['min']} to {lengths['max']}"
        raise ContentError(f"{file}: '{name}': expected non-empty lists of equal length, got lengths from {found}")
    inner = pc.list_flatten(column)
    if inner.null_count:
        raise ContentError(f"{file}: '{name}': expected lists of numbers, got null")


def _check_texts(file: Path, name: str, column: pa.ChunkedArray) -> None:
    good, needed = _TEXTS[name]
    code, names = codes(column)
    for i, text in enumerate(names):
        if not good(text):
            raise _error(file, name, int(np.flatnonzero(code == i)[0]), text, needed)


def _check_once(file: Path, column: pa.ChunkedArray) -> None:
    code, names = codes(column)
    if len(names) < len(code):
        twice = names[int(np.flatnonzero(np.bincount(code) > 1)[0])]
        raise ContentError(f"{file}: the trial {twice} is listed twice")


def _error(file: Path, name: str, row: int, value: Any, needed: str) -> ContentError:
    text = repr(value)
    return ContentError(f"{file}: row {row + 1}: '{name}': expected {needed}, got {text[:60]}")
