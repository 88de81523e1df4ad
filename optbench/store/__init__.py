"""The run directory: Arrow schemas of its tables, an atomic writer and a reader."""

from __future__ import annotations

from optbench.store.read import RunDirectory, find_run, read_run, read_runs, run_ids
from optbench.store.run import RunWriter

__all__ = ["RunDirectory", "RunWriter", "find_run", "read_run", "read_runs", "run_ids"]
