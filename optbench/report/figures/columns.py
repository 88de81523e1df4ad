"""Selection of the table rows that were measured at the end of each trial."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from optbench.stats.results import Results
from optbench.store.columns import codes, numbers

Array: TypeAlias = NDArray[np.float64]

LAYER = "features"


def final_rows(results: Results, table: pa.Table, *columns: Array) -> dict[str, Array]:
    """Return the rows measured after each trial's last task, as an array (rows, columns) for each trial id.

    The rows of a trial are in table order.

    table: table with the columns `trial` and `after_task`. If it also has a column `layer`, only the rows of the layer
        `features` are used.
    columns: the columns to return, each with one value per row of the table.
    """
    trial, ids = codes(table["trial"])
    # -1 never equals a number of tasks.
    last = np.array([results.matrices[name].shape[1] if name in results.matrices else -1 for name in ids], np.int64)
    wanted = numbers(table["after_task"]) == last[trial] if len(trial) else np.empty(0, bool)
    if "layer" in table.column_names:
        layer, layers = codes(table["layer"])
        wanted &= np.isin(layer, [i for i, name in enumerate(layers) if name == LAYER])
    kept = np.flatnonzero(wanted)
    kept = kept[np.argsort(trial[kept], kind="stable")]
    present, starts = np.unique(trial[kept], return_index=True)
    pieces = np.split(np.column_stack([column[kept] for column in columns]), starts[1:])
    return {ids[code]: piece for code, piece in zip(present.tolist(), pieces, strict=False)}
