"""What jobs of SLURM ask for: `--set-on NAME=VALUE`, as submitit takes it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optbench.errors import UsageError, WorkerError, unknown
from optbench.execution.slurm_queue import missing, partitions

MAX_JOBS = 16
"""Number of jobs at a time, unless `max_jobs` or `--jobs` says otherwise."""
MINUTES = 60
"""A job's time limit, unless `timeout_min` says otherwise."""
OWN = ("folder", "max_jobs", "cluster")
"""Settings that are not submitit's. cluster: `slurm`, or `local` for processes of this machine."""
COMMANDS = ("setup", "teardown")
"""Settings of submitit's that are shell commands, before and after a job's program."""
FLAGS = ("exclusive", "stderr_to_stdout", "use_srun")
"""Settings of submitit's that are true or false; `exclusive` may be a text, too."""
OPTIONS = "additional_parameters"
"""The setting for options of sbatch that submitit has no name for: `reservation=lab,nice=100`."""
NO_REQUEUE = {"no-requeue": True}
"""SLURM would start a job again, under its id, whose worker has been replaced by then."""


def executor(folder: Path, settings: Mapping[str, str], *, gpu: bool) -> Any:
    """Return submitit's executor with the settings that were given. folder: for its logs. gpu: one for each job.

    Raises:
        UsageError: there is no such setting or partition, or it has another kind of value.
        WorkerError: there is no SLURM here, or it does not answer.
    """
    import submitit
    from submitit.slurm.slurm import SlurmExecutor

    cluster = settings.get("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise UsageError(f"--set-on cluster={cluster}: expected slurm or local, got {cluster}")
    general = submitit.AutoExecutor._typed_parameters()
    of_slurm = SlurmExecutor._valid_parameters()
    given: dict[str, Any] = {"name": "optbench", "timeout_min": MINUTES, "cpus_per_task": 1}
    given |= {"gpus_per_node": 1} if gpu else {}
    given |= {f"slurm_{OPTIONS}": NO_REQUEUE}
    for name, text in settings.items():
        if name in OWN:
            continue
        if name not in general and name not in of_slurm:
            raise UsageError(f"--set-on {name}: {unknown('setting', name, {*OWN, *general, *of_slurm})}")
        given[name if name in general else f"slurm_{name}"] = _value(name, text, general.get(name))
    if given.get("tasks_per_node", 1) != 1 or given.get("nodes", 1) != 1:
        raise UsageError("--set-on: a job has one task on one node; max_jobs is how many there are")
    if cluster == "slurm":
        if (command := missing()) is not None:
            raise WorkerError(f"--on slurm: there is no {command} here; start optbench on a login node of the cluster")
        known = partitions()
        for partition in filter(None, settings.get("partition", "").split(",")):
            if partition not in known:
                raise UsageError(f"--set-on partition={partition}: {unknown('partition', partition, known)}")
    made = submitit.AutoExecutor(folder=folder, cluster=cluster)
    made.update_parameters(**given)
    return made


def _value(name: str, text: str, kind: type | None) -> Any:
    """Return a setting's value as submitit takes it. kind: its type, if submitit declares one.

    Raises:
        UsageError: it is of another kind.
    """
    if kind is int:
        return whole(name, text)
    if kind is float:
        return _number(name, text)
    if name in FLAGS and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if name in FLAGS and name != "exclusive":
        raise UsageError(f"--set-on {name}={text}: expected true or false, got {text}")
    if name in COMMANDS:
        return [text]
    if name == "srun_args":
        return shlex.split(text)
    if name == OPTIONS:
        pairs = [option.partition("=") for option in text.split(",")]
        return {option.strip().lstrip("-"): value if equals else True for option, equals, value in pairs} | NO_REQUEUE
    # Of SLURM's own settings submitit declares no types; those that are numbers look like numbers.
    return int(text) if kind is None and text.isdecimal() else text


def whole(name: str, text: str | int) -> int:
    """Return the whole number of at least 1 that a setting is. Raises UsageError if it is something else."""
    try:
        if (value := int(text)) > 0:
            return value
    except ValueError:
        pass
    raise UsageError(f"--set-on {name}={text}: expected a whole number of at least 1, got {text}")


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--set-on {name}={text}: expected a number, got {text}") from None
