"""What a worker does with a unit: it trains a cohort as far as memory allows, or compares solutions."""

from __future__ import annotations

import dataclasses
import gc
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file

from optbench.engine import train
from optbench.engine.determinism import alerts
from optbench.engine.interim import Interim
from optbench.engine.pairs import compare
from optbench.engine.plain import NotPlain
from optbench.errors import OptbenchError
from optbench.plan import Cohort, Trial
from optbench.store.interim import Kept, read_interim, write_interim
from optbench.store.tables import Row, TrialRow
from optbench.units import Answer, Compare, Compared, Failed, Finished, TooLarge, Train, Unit, Weights

if TYPE_CHECKING:
    from optbench.engine import Progress, Setting, TrialResult

LEAST_SECONDS = 1.0
"""What a cohort has come to is kept no more often than this; what is lost otherwise is not worth a file."""
SHARE = 0.05
"""At most about this share of the time is spent on keeping it."""


def do(unit: Unit, setting: Setting, notify: Callable[[Progress], None], interim: Path) -> Answer:
    """Do one unit; whatever goes wrong in it is an answer, too, so that the others go on.

    interim: the folder in which what cohorts have come to is kept at the end of a task.

    Raises:
        OptbenchError: the settings are to blame, or `interim` cannot be written or read.
    """
    try:
        return _train(unit, setting, notify, interim) if isinstance(unit, Train) else _compare(unit, setting)
    except OptbenchError:
        raise
    except Exception as error:
        answer = failed(unit, error)
    # Outside of the handler, whose traceback would keep what has been allocated.
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    return answer


def failed(unit: Unit, error: Exception) -> TooLarge | Failed:
    """What a unit in which `error` was raised comes to."""
    if not _is_out_of_memory(error):
        return Failed(unit, type(error).__name__, str(error), traceback.format_exc())
    if isinstance(unit, Train) and len(unit.cohort.trainings) > 1:
        return TooLarge(unit)
    what = "train one trial alone" if isinstance(unit, Train) else "compare the solutions of one seed"
    reason = str(error).strip().partition("\n")[0]
    return Failed(unit, "OutOfMemory", f"not enough memory to {what}" + (f": {reason}" if reason else ""))


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch has a class of its own for it on accelerators only."""
    texts = ("DefaultCPUAllocator", "bad_alloc", "Cannot allocate memory", "could not create a memory object")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in texts)
    )


def _train(unit: Train, setting: Setting, notify: Callable[[Progress], None], interim: Path) -> Finished:
    with alerts() as operations:
        begun = _read_begun(unit, operations)
        keeper = _Keeper(unit.cohort, interim, operations)
        try:
            results = train(unit.cohort, setting, notify, keeper, begun)
        except NotPlain:  # the optimizer's code has changed since
            results = train(unit.cohort, setting, notify, keeper, {})
    notes = [unit.note] if unit.note is not None else []
    if operations:
        names = ", ".join(sorted(operations))
        notes.append(f"may not repeat to the last bit: on {setting.device.type} {names} is not deterministic")
    for note in notes:
        results = [_noted(result, note) for result in results]
    weights: tuple[tuple[Trial, Weights], ...] = ()
    if setting.experiment.checkpoints:
        weights = tuple(
            (result.trial, {name: tensor.numpy() for name, tensor in result.weights.items()})
            for result in results
            if result.weights is not None
        )
    return Finished(unit.cohort, tuple((result.trial, row) for result in results for row in result.rows), weights)


def _compare(work: Compare, setting: Setting) -> Compared:
    rows = compare(work.comparison, setting, lambda trial: load_file(work.places[trial.id]), work.missing)
    return Compared(work.comparison, tuple(rows))


def _noted(result: TrialResult, note: str) -> TrialResult:
    def noted(row: Row) -> Row:
        if not isinstance(row, TrialRow):
            return row
        return dataclasses.replace(row, note="; ".join(filter(None, (row.note, note))))

    return dataclasses.replace(result, rows=tuple(map(noted, result.rows)))


class _Keeper:
    """Writes what a cohort has come to, now and then; with it the operations met so far that are not deterministic."""

    def __init__(self, cohort: Cohort, folder: Path, operations: set[str]) -> None:
        self._cohort, self._folder, self._operations = cohort, folder, operations
        self._written_at = time.monotonic()
        self._seconds = 0.0
        self._possible = True

    def __call__(self, make: Callable[[], list[Interim]]) -> None:
        started = time.monotonic()
        if not self._possible or started - self._written_at < max(LEAST_SECONDS, self._seconds / SHARE):
            return
        try:
            interims = make()
        except NotPlain:  # a user's optimizer may keep anything: its trials begin anew, whenever they are interrupted
            self._possible = False
            return
        trials = {trial.id: trial for trial in self._cohort.trials}
        kept = [_kept(interim, self._operations) for interim in interims]
        write_interim(self._folder, self._cohort.id, kept, trials)
        self._written_at = time.monotonic()
        self._seconds = self._written_at - started


def _kept(interim: Interim, operations: set[str]) -> Kept:
    record, tensors = interim.record()
    record["operations"] = sorted(operations)
    return Kept(record, {name: tensor.numpy() for name, tensor in tensors.items()}, interim.rows)


def _read_begun(unit: Train, operations: set[str]) -> dict[str, Interim]:
    """What the trials of a unit go on from, by their ids; operations: receives what was remembered with it."""
    found: dict[str, Interim] = {}
    for part in {place.part for place in unit.begun.values()}:
        for kept in read_interim(part):
            tensors = {name: torch.from_numpy(np.array(array)) for name, array in kept.tensors.items()}
            operations.update(kept.record["operations"])
            interim = Interim.from_record(dict(kept.record), tensors, kept.rows)
            ids = [trial for trial in interim.trials if trial in unit.begun and unit.begun[trial].part == part]
            found |= dict.fromkeys(ids, interim)
    return found
