"""The trackers that a run can be exported to. To add one: a file here with a `write`, and a line in `TRACKERS`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from optbench.errors import UsageError, unknown
from optbench.export.run_log import RunLog

Write: TypeAlias = Callable[[RunLog, Path], str]
"""Writes the files of a run into a folder that has only its report; returns the command that shows or uploads them."""


@dataclass(frozen=True)
class Tracker:
    """One tracker.

    title: its own name. module: which writes its files, and imports `needs` when it does. needs: what the extra of the
    tracker's name installs: the module that `module` imports, and an attribute of it.
    """

    title: str
    module: str
    needs: tuple[str, str]


TRACKERS: Mapping[str, Tracker] = MappingProxyType(
    {
        "tensorboard": Tracker(
            "TensorBoard", "optbench.export.to_tensorboard", ("tensorboard.compat.proto.event_pb2", "Event")
        ),
        "wandb": Tracker("Weights & Biases", "optbench.export.to_wandb", ("wandb", "Artifact")),
    }
)


def find_writer(name: str) -> Write:
    """Return what writes the files of the tracker `name`.

    Raises:
        UsageError: there is no such tracker, or what it needs is not installed.
    """
    if name not in TRACKERS:
        raise UsageError(f"--to: {unknown('tracker', name, TRACKERS)}")
    tracker = TRACKERS[name]
    module, attribute = tracker.needs
    try:
        # The attribute, too: W&B writes to folders called `wandb`, which Python imports as empty packages.
        getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        package = module.partition(".")[0]
        lacking = isinstance(error, AttributeError) or (error.name or package).partition(".")[0] == package
        reason = "" if lacking else f" (it cannot be imported: {error})"
        raise UsageError(f"--to {name} needs {tracker.title}: pip install 'optbench[{name}]'{reason}") from None
    write: Write = importlib.import_module(tracker.module).write
    return write
