"""The processing of one unit in a worker: training a cohort, if memory suffices, or comparing solutions."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from optbench.engine import train
from optbench.engine.determinism import alerts
from optbench.engine.faults import is_out_of_memory
from optbench.engine.interim import CannotResume, Interim
from optbench.engine.outside import OutsideState
from optbench.engine.solutions import compare
from optbench.errors import OptbenchError, OptimizerError, StoreError
from optbench.execution.elsewhere import differences
from optbench.execution.messages import (
    Answer,
    Compare,
    Compared,
    Divide,
    Elsewhere,
    Failed,
    Finished,
    Saved,
    Train,
    Unit,
    Weights,
)
from optbench.isolation import isolated
from optbench.optimizers.load import load_factory
from optbench.plan import Cohort, Trial
from optbench.store.interim import Kept, find_refused, read_interim, write_interim
from optbench.store.tables import Row, TrialRow
from optbench.targets import source_hash

if TYPE_CHECKING:
    from optbench.engine import Progress, TrialResult, Workspace

LEAST_SECONDS = 1.0
"""Minimum seconds between two saved states of a cohort; less work than this is repeated rather than saved."""
LEAST_SECONDS_ELSEWHERE = 20.0
"""Minimum seconds between two saved states of a cohort if they are sent to another machine."""
SHARE = 0.02
"""Approximate maximum fraction of the time that is spent on saving states."""
ANEW = "trained from the start when resumed"
OTHER = {"device": "on another kind of device", "code": "with other code"}


def do(
    unit: Unit,
    workspace: Workspace,
    notify: Callable[[Progress | Saved], None],
    interim: Path,
    elsewhere: Elsewhere | None = None,
) -> Answer:
    """Process one unit. Exceptions are returned as answers where possible, so that other units can continue.

    interim: the folder in which the states of cohorts are saved at the end of a task. elsewhere: information about a
        main process on another machine, which is then notified of every saved state; None if the main process is on
        this machine.

    Raises:
        OptbenchError: settings other than those of an optimizer are invalid, and no user's code is involved; or
            `interim` cannot be read or written.
    """
    try:
        with isolated():
            if isinstance(unit, Compare):
                return _compare(unit, workspace)
            return _train(unit, workspace, notify, interim, elsewhere)
    except OptbenchError as error:
        # Errors in a user's code, including missing files, must not affect other trials.
        if isinstance(error, StoreError) or not (unit.user_code or isinstance(error, OptimizerError)):
            raise
        answer = failed(unit, error)
    except Exception as error:
        answer = failed(unit, error)
    # After the handler, because its traceback would keep the allocated memory alive.
    gc.collect()
    if workspace.device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # the device may be broken
            torch.cuda.empty_cache()
    return answer


def failed(unit: Unit, error: Exception) -> Divide | Failed:
    """Return the answer for a unit in which `error` was raised."""
    too_large = is_out_of_memory(error)
    if isinstance(unit, Train) and len(unit.cohort.trainings) > 1 and (too_large or unit.cohort.trials[0].kinds):
        return Divide(unit, too_large)
    if not too_large:
        return Failed(unit, type(error).__name__, str(error), traceback.format_exc())
    what = "train one trial alone" if isinstance(unit, Train) else "compare the solutions of one seed"
    reason = str(error).strip().partition("\n")[0]
    return Failed(unit, "OutOfMemory", f"not enough memory to {what}" + (f": {reason}" if reason else ""))


def _train(
    unit: Train,
    workspace: Workspace,
    notify: Callable[[Progress | Saved], None],
    interim: Path,
    elsewhere: Elsewhere | None,
) -> Finished:
    outside = OutsideState(load_factory(target) for trial in unit.cohort.trials for target in trial.user_optimizers)
    with alerts() as operations:
        keeper = _Keeper(unit, interim, workspace, operations)
        if elsewhere is not None:
            keeper.notes += [*differences(elsewhere.made_with), *elsewhere.notes]
            keeper.least_seconds, keeper.saved, keeper.must = LEAST_SECONDS_ELSEWHERE, notify, False
        begun = _read_begun(unit, keeper)
        try:
            results = train(unit.cohort, workspace, notify, keeper, begun)
        except CannotResume as error:
            keeper.anew(unit.begun, f"the saved state does not fit the current optimizer: {error}")
            results = train(unit.cohort, workspace, notify, keeper, {})
    results = [_noted(result, note) for result in results for note in [keeper.own.get(result.trial.id)]]
    notes = list(keeper.notes)
    if operations:
        names, verb = ", ".join(sorted(operations)), "are" if len(operations) > 1 else "is"
        notes.append(
            f"may not be reproducible bit for bit: {names} {verb} not deterministic on {workspace.device.type}"
        )
    if name := outside.changed():
        notes.append(f"the optimizer keeps state outside its instances ({name}), which all trials of a process share")
    for note in notes:
        results = [_noted(result, note) for result in results]
    weights: tuple[tuple[Trial, Weights], ...] = ()
    if workspace.experiment.checkpoints:
        weights = tuple(
            (result.trial, {name: tensor.numpy() for name, tensor in result.weights.items()})
            for result in results
            if result.weights is not None
        )
    return Finished(unit.cohort, tuple((result.trial, row) for result in results for row in result.rows), weights)


def _compare(work: Compare, workspace: Workspace) -> Compared:
    rows = compare(work.comparison, workspace, lambda trial: load_file(work.places[trial.id]), work.missing)
    return Compared(work.comparison, tuple(rows))


def _noted(result: TrialResult, note: str | None) -> TrialResult:
    def noted(row: Row) -> Row:
        if not isinstance(row, TrialRow):
            return row
        return dataclasses.replace(row, note="; ".join(filter(None, (row.note, note))) or None)

    return dataclasses.replace(result, rows=tuple(map(noted, result.rows)))


class _Keeper:
    """A callable that saves the state of a cohort with its notes, unless the last save was too recent.

    notes: notes for all trials. own: notes for individual trials, by id. operations: the non-deterministic operations
        found so far.
    """

    def __init__(self, unit: Train, folder: Path, workspace: Workspace, operations: set[str]) -> None:
        self._cohort, self.folder = unit.cohort, folder
        self.notes = [unit.note] if unit.note is not None else []
        self.own: dict[str, str] = {}
        self.operations = operations
        self.made_with = {"device": workspace.device.type, "code": _code(unit.cohort)}
        self._written_at = time.monotonic()
        self._seconds = 0.0
        self._possible = True
        self.least_seconds = LEAST_SECONDS
        self.saved: Callable[[Saved], None] = lambda saved: None
        self.must = True  # raise errors, because results could not be written to the run directory either

    def anew(self, trials: Iterable[str], reason: str) -> None:
        """Record why trials are trained from the start although their states had been saved."""
        self.own |= dict.fromkeys(trials, f"{ANEW}: {reason}")

    def __call__(self, take: Callable[[], list[Interim]]) -> None:
        started = time.monotonic()
        if not self._possible or started - self._written_at < max(self.least_seconds, self._seconds / SHARE):
            return
        trials = {trial.id: trial for trial in self._cohort.trials}
        try:
            interims = take()
            part = write_interim(self.folder, self._cohort.id, list(map(self._kept, interims)), trials)
            self.saved(Saved(part))
            # If no optimizer's state can be saved, there is nothing further to write.
            self._possible = any(interim.refused is None for interim in interims)
        except StoreError:
            if self.must:
                raise
        except Exception:  # e.g. no memory for a copy; states are only a precaution, so training continues
            gc.collect()
        self._written_at = time.monotonic()
        self._seconds = self._written_at - started

    def _kept(self, interim: Interim) -> Kept:
        record = interim.record()
        own = {trial: self.own[trial] for trial in interim.trials if trial in self.own}
        record |= {"notes": self.notes, "own_notes": own, "operations": sorted(self.operations)}
        record["made_with"] = self.made_with
        return Kept(record, interim.state, interim.rows)


def _code(cohort: Cohort) -> str | None:
    """Return the hash of the users' code and texts that a cohort uses; None if it uses none."""
    return source_hash(target for trial in cohort.trials for target in trial.user_files)


def _read_begun(unit: Train, keeper: _Keeper) -> dict[str, Interim]:
    """Return the states from which a unit's trials resume, by trial id; empty if they are trained from the start.

    The saved notes, and the reasons why trials cannot be resumed, are added to `keeper`.
    """
    refused = find_refused(keeper.folder)
    for trial in unit.cohort.trials:
        if trial.id in refused and trial.id not in unit.begun:
            keeper.anew([trial.id], refused[trial.id])
    try:
        found = _read_all(unit, keeper)
    except Exception as error:  # the file may be missing, or have arbitrary content with a valid checksum
        found = f"the saved state cannot be read: {type(error).__name__}"
    if isinstance(found, str):
        keeper.anew(unit.begun, found)
        return {}
    return found


def _read_all(unit: Train, keeper: _Keeper) -> dict[str, Interim] | str:
    """Return the states as `_read_begun` does, or the reason why they cannot be used.

    They cannot be used if they are missing, or if the device or code has changed.
    """
    found: dict[str, Interim] = {}
    notes: list[str] = []
    own: dict[str, str] = {}
    operations: set[str] = set()
    for part in {place.part for place in unit.begun.values()}:
        for kept in read_interim(part):
            record = dict(kept.record)
            ids = [trial for trial in record["trials"] if trial in unit.begun and unit.begun[trial].part == part]
            if not ids:
                continue
            for name, value in keeper.made_with.items():
                if record["made_with"][name] != value:
                    return f"the saved state was made {OTHER[name]}"
            notes += [str(note) for note in record["notes"]]
            own |= {str(trial): str(note) for trial, note in record.get("own_notes", {}).items()}
            operations.update(map(str, record["operations"]))
            found |= dict.fromkeys(ids, Interim.from_record(record, kept.state, kept.rows))
    if found.keys() != unit.begun.keys():
        return "the saved state is missing"
    keeper.notes = list(dict.fromkeys([*notes, *keeper.notes]))
    keeper.own = own | keeper.own
    keeper.operations |= operations
    return found
