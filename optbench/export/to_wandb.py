"""Export to Weights & Biases: one offline run per trial, and one with the report as an artifact.

Nothing is uploaded until the user calls `wandb sync`. Numbers are float64, as in the tables.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import wandb

from optbench.errors import StoreError
from optbench.export.folder import REPORT
from optbench.export.run_log import RunLog, TrialLog
from optbench.file_names import file_name

LONGEST = 128
"""Maximum length of a name in W&B, in characters."""
ERROR_REPORTS = "WANDB_ERROR_REPORTING"
"""Name of an environment variable. Unless its value is `false`, W&B connects to its error tracker even when offline."""
_SETTINGS = {
    "mode": "offline",
    "silent": True,
    "console": "off",
    "symlink": False,
    "disable_job_creation": True,
    # The remaining settings leave out data about the machine and folder of the export. The run's record states where
    # trials were trained.
    "host": "",
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


def write(run: RunLog, folder: Path) -> str:
    """Write `wandb/offline-run-*` for each trial and for the report; return the command that uploads these runs.

    Raises:
        StoreError: a table of the run is damaged, or W&B cannot write.
    """
    keys = distinct_keys(metric.name for metric in run.metrics)
    with _without_error_reports():
        try:
            for log in run.trials:
                _write_trial(run, log, keys, folder)
            _write_report(run, folder)
        except wandb.Error as error:
            raise StoreError(f"{folder}: cannot write: {str(error).splitlines()[0]}") from error
        finally:
            wandb.teardown()
    return f"wandb sync {shlex.quote(str(folder))}/wandb/offline-run-*"


def distinct_keys(names: Iterable[str]) -> dict[str, str]:
    """Return the W&B key of each name.

    Keys consist of letters, digits and underscores, because W&B's tables treat a dot as a path separator. If several
    names would have the same key, the later ones are numbered: `a.b` and `a b` become `a_b` and `a_b_2`.
    """
    found: dict[str, str] = {}
    for name in names:
        plain = key = re.sub(r"[^A-Za-z0-9_]+", "_", name)
        count = 1
        while key in found.values():
            count += 1
            key = f"{plain}_{count}"
        found[name] = key
    return found


def _write_trial(run: RunLog, log: TrialLog, keys: dict[str, str], folder: Path) -> None:
    group = "/".join(log.trial.parts[:-1])
    config = {"trial": log.trial.id, "run": run.name, **log.settings}
    # A diverged trial is a result, not a failure; `status` identifies it.
    failed = log.status == "failed"
    with _begun(
        run, folder, log.trial.id, failed=failed, group=shortened(group), job_type=log.trial.stage, config=config
    ) as one:
        axes: set[str] = set()
        charts: set[str] = set()
        for entry in log.entries:
            axis = f"axis/{entry.axis}"
            if axis not in axes:
                axes.add(axis)
                one.define_metric(axis, hidden=True, summary="none")
            for chart in {name.partition("/")[0] for name in entry.values} - charts:
                charts.add(chart)
                one.define_metric(f"{chart}/*", step_metric=axis, summary="none")
            one.log({axis: entry.at, **entry.values})
        one.summary.update({f"final/{keys[name]}": value for name, value in log.final.items()})
        one.summary.update({"status": log.status, **log.remarks})


def _write_report(run: RunLog, folder: Path) -> None:
    with _begun(run, folder, f"{run.name} report", job_type="report", config=run.about) as one:
        name = f"{file_name([run.name]).replace('@', '-')}-report"
        artifact = wandb.Artifact(name, type="report", description="The page that optbench report writes for the run.")
        artifact.add_file(str((folder / REPORT).absolute()), name=REPORT, policy="immutable")  # avoids a copy
        one.log_artifact(artifact)


@contextlib.contextmanager
def _begun(run: RunLog, folder: Path, name: str, *, failed: bool = False, **about: Any) -> Iterator[Any]:
    """Open a W&B run whose id depends only on `run` and `name`, so that a second export does not duplicate it."""
    known = {key: value for key, value in _SETTINGS.items() if key in wandb.Settings.model_fields}
    about |= {"project": re.sub(r"[/\\#?%:]", "-", run.results.suite.name)[:LONGEST], "name": shortened(name)}
    digest = hashlib.sha256("\n".join((run.name, str(run.created), name)).encode()).hexdigest()[:16]
    settings = wandb.Settings(**known)
    one = wandb.init(id=digest, dir=str(folder), settings=settings, reinit="create_new", **about)
    try:
        yield one
    finally:
        one.finish(exit_code=int(failed))


def shortened(name: str) -> str:
    """Return a name of at most `LONGEST` characters, replacing the end of a longer name with a digest of the name."""
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: LONGEST - len(digest) - 1]}…{digest}"


@contextlib.contextmanager
def _without_error_reports() -> Iterator[None]:
    before = os.environ.get(ERROR_REPORTS)
    os.environ[ERROR_REPORTS] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[ERROR_REPORTS]
        else:
            os.environ[ERROR_REPORTS] = before
