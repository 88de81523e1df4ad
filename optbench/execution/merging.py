"""Merging: runs of one suite with different seeds become one run, equal to a run trained with all of the seeds."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optbench.counting import count
from optbench.errors import StoreError, UsageError
from optbench.execution.directory import differs, latest_provenance, places
from optbench.execution.schedule import make_plan
from optbench.store.plugins import FOLDER, plugins_of
from optbench.store.read import RunDirectory, read_run
from optbench.store.run import RunExists, RunWriter
from optbench.suite import Suite, dump_suite, load_suite, suite_differences, suite_hash

OF_ONE_RUN = ("suite_hash", "seeds", "command", "resumed", "merged", "status", "finished", "run", "created")
"""Fields of a run's record that apply to that run only; the merged run takes all other fields from the first run."""


@dataclasses.dataclass(frozen=True)
class Merged:
    """The path and seeds of a merged run, and the number of its trials as text."""

    path: Path
    seeds: tuple[int, ...]
    trials: str


def merge(
    runs: Sequence[Path], runs_dir: Path, name: str | None, command: Sequence[str], *, force: bool = False
) -> Merged:
    """Merge several runs into a new one in its own directory; the original runs are not changed.

    Except for times, the tables, checkpoints and suite are the same as in a single run with all seeds. If the runs
    differ in settings that do not affect results (claims, primary metrics), the first run's settings are used.

    runs: the directories of the runs.
    name: the id of the new run, by default the suite's name and the time.
    command: the command line to record.
    force: True to merge even runs made with different versions of torch or on different kinds of machine.

    Raises:
        UsageError: there are fewer than two runs; a run is incomplete or is a tuning run; two runs share a seed; the
            runs differ in their suite, users' code or metrics version; or, without `force`, they differ in their
            version of torch or kind of machine.
        StoreError: a run cannot be read, or the new run cannot be written or already exists.
    """
    found = [read_run(path) for path in runs]
    suites = [load_suite(run.path / "suite.yaml", as_written=True) for run in found]
    _check(found, suites, force=force)
    first, others = suites[0], suites[1:]
    seeds = sorted(seed for suite in (first, *others) for seed in suite.seeds)
    plan = make_plan(first.model_copy(update={"seeds": seeds}))
    record = {
        **{key: value for key, value in found[0].record.items() if key not in OF_ONE_RUN},
        "suite_hash": suite_hash(plan.suite),
        "command": list(command),
        "seeds": seeds,
        "merged": [_part(run.record) for run in found],
    }
    for path in places(runs_dir, name, plan.suite.name):
        try:
            writer = RunWriter.create(path, dump_suite(plan.suite), record, plan.trials, _code(found[0]))
            break
        except RunExists:
            if name is not None:  # unlike a run in training, it cannot be resumed
                raise StoreError(f"{path}: this run already exists; choose another --name") from None
    try:
        for run in found:
            writer.adopt(run)
        writer.finish("complete")
    except BaseException:
        shutil.rmtree(writer.path, ignore_errors=True)
        raise
    return Merged(writer.path, tuple(seeds), plan.count)


def _check(runs: Sequence[RunDirectory], suites: Sequence[Suite], *, force: bool) -> None:
    if len(runs) < 2:
        raise UsageError(f"merge: expected at least two runs, got {count(len(runs), 'run')}")
    of: dict[int, RunDirectory] = {}
    first = runs[0]
    for run, suite in zip(runs, suites, strict=True):
        where = f"merge: {run.path}"
        if suite.stage == "tune":
            raise UsageError(f"{where}: expected a run made by optbench run, got one made by optbench tune")
        if (status := run.record.get("status")) != "complete":
            raise UsageError(f"{where}: expected a complete run, got one that is {status}; --resume it first")
        if differences := suite_differences(suites[0].model_copy(update={"seeds": suite.seeds}), suite):
            raise UsageError(
                f"{where}: expected the suite of {first.path} with other seeds, got another suite: {differences[0]}"
                + (f", and {len(differences) - 1} more" if len(differences) > 1 else "")
            )
        for seed in suite.seeds:
            if seed in of:
                raise UsageError(f"{where}: expected each seed in one run, got seed {seed} also in {of[seed].path}")
            of[seed] = run
        _check_code(first, run)
        if first.record.get("metrics_version") != run.record.get("metrics_version"):
            expected, got = (record.get("metrics_version", "none") for record in (first.record, run.record))
            raise UsageError(f"{where}: expected version {expected} of the metrics, as in {first.path}, got {got}")
        if not force and (what := differs(latest_provenance(first.record), latest_provenance(run.record))):
            raise UsageError(
                f"{where}: expected {what[0]} {what[1]}, as for {first.path}, got {what[0]} {what[2]}; "
                "a single run could not have given these results; --force merges them anyway"
            )


def _check_code(first: RunDirectory, run: RunDirectory) -> None:
    ours, theirs = ({t: p.source_hash for t, p in plugins_of(r.record).items()} for r in (first, run))
    for target in ours.keys() | theirs.keys():
        if ours.get(target) != theirs.get(target):
            raise UsageError(f"merge: {run.path}: expected the same {target} as for {first.path}, got another version")


def _part(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a run's record that are kept in the merged run."""
    return {key: record[key] for key in ("run", "seeds", "command", "created", "finished") if key in record} | {
        "provenance": latest_provenance(record)
    }


def _code(run: RunDirectory) -> dict[str, bytes]:
    """Return a run's copies of users' code and texts, by path relative to the run directory."""
    folder = run.path / FOLDER
    try:
        return {
            file.relative_to(run.path).as_posix(): file.read_bytes()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
    except OSError as error:
        raise StoreError(f"{folder}: unreadable: {error.strerror}") from error
