"""The final rows of long tables, as arrays by trial."""

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
    """Return trial -> (rows, columns), measured after its last task, in the order of the table.

    table: has the column `after_task`, and possibly `layer`, in which case only rows of the features are used.
    columns: each (rows of the table,).
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
