"""The results of a run, held in memory while the run is written."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from optbench.store.tables import ALL_TABLES, TrialRow


class Gathered:
    """The tables of a run, to which the results of cohorts are added.

    Added rows are kept in a list and joined when a table is read, so that the time to add a cohort does not grow with
    the number of trials in the run.
    """

    def __init__(self, tables: Mapping[str, pa.Table]) -> None:
        """tables: the initial content of every table of `ALL_TABLES`, by name."""
        self._joined = dict(tables)
        self._added: dict[str, list[pa.Table]] = {name: [] for name in ALL_TABLES}
        self.endings = _endings(self._joined[TrialRow.table])
        """The status of every finished trial and the path of its final weights, if any, by trial id."""

    def table(self, name: str) -> pa.Table:
        """Return a table with all rows added so far, in order of addition."""
        if self._added[name]:
            # Combined into one chunk, because thousands of small chunks take several times the memory of their content.
            self._joined[name] = pa.concat_tables([self._joined[name], *self._added[name]]).combine_chunks()
            self._added[name] = []
        return self._joined[name]

    def add(self, found: Mapping[str, pa.Table]) -> None:
        """Add rows, and remove all earlier rows of the same trials.

        found: the tables with the new rows, by name. The table `trials` must be included and list these trials.
        """
        endings = _endings(found[TrialRow.table])
        if replaced := self.endings.keys() & endings.keys():  # trials that had failed, usually few
            trials = pa.array(sorted(replaced), pa.string())
            for name in ALL_TABLES:
                table = self.table(name)
                self._joined[name] = table.filter(pc.invert(pc.is_in(table["trial"], value_set=trials)))
        for name, table in found.items():
            if table.num_rows:
                self._added[name].append(table)
        self.endings |= endings

    def is_done(self, trial: str) -> bool:
        """Return whether a trial has finished with the status `ok` or `diverged`; failed trials are trained again."""
        return self.endings.get(trial, ("failed", None))[0] != "failed"


def _endings(trials: pa.Table) -> dict[str, tuple[str, str | None]]:
    columns = (trials[name].to_pylist() for name in ("trial", "status", "checkpoint"))
    return {trial: (status, checkpoint) for trial, status, checkpoint in zip(*columns, strict=True)}
