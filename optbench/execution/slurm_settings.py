"""The settings of SLURM jobs: `--set-on NAME=VALUE`, converted for submitit."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optbench.errors import UsageError, WorkerError, unknown
from optbench.execution.slurm_queue import missing, partitions

MAX_JOBS = 16
"""Default maximum number of concurrent jobs; `max_jobs` or `--jobs` changes it."""
MINUTES = 60
"""Default time limit of a job in minutes; `timeout_min` changes it."""
OWN = ("folder", "max_jobs", "cluster")
"""Settings that submitit does not have. The value of `cluster` is `slurm`, or `local` for processes on this machine."""
COMMANDS = ("setup", "teardown")
"""Settings of submitit that are shell commands, executed before and after a job's program."""
FLAGS = ("exclusive", "stderr_to_stdout", "use_srun")
"""Settings of submitit that are true or false; `exclusive` can also be other text."""
OPTIONS = "additional_parameters"
"""The setting for sbatch options that are not settings of submitit, e.g. `reservation=lab,nice=100`."""
NO_REQUEUE = {"no-requeue": True}
"""The option that prevents SLURM from restarting a job, with the same id, after its worker has been replaced."""


def executor(folder: Path, settings: Mapping[str, str], *, gpu: bool) -> Any:
    """Return submitit's executor with the given settings. folder: the folder for logs. gpu: True for one GPU per job.

    Raises:
        UsageError: a setting or partition does not exist, a setting has an invalid value, or a job would have more than
            one task.
        WorkerError: SLURM is not installed here, or does not answer.
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
        got = f"nodes={given.get('nodes', 1)} and tasks_per_node={given.get('tasks_per_node', 1)}"
        raise UsageError(f"--set-on: expected one task on one node, got {got}; max_jobs sets the number of jobs")
    if cluster == "slurm":
        if (command := missing()) is not None:
            raise WorkerError(f"--on slurm: {command} was not found; start optbench on a login node of the cluster")
        known = partitions()
        for partition in filter(None, settings.get("partition", "").split(",")):
            if partition not in known:
                raise UsageError(f"--set-on partition={partition}: {unknown('partition', partition, known)}")
    made = submitit.AutoExecutor(folder=folder, cluster=cluster)
    made.update_parameters(**given)
    return made


def _value(name: str, text: str, kind: type | None) -> Any:
    """Convert a setting's value for submitit. kind: the setting's type; None if submitit declares none.

    Raises:
        UsageError: the value has the wrong type.
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
    # Submitit declares no types for SLURM's settings, so texts that look like integers are converted.
    return int(text) if kind is None and text.isdecimal() else text


def whole(name: str, text: str | int) -> int:
    """Convert a setting's value to an integer of at least 1. Raises UsageError if this is impossible."""
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
