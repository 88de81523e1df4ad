"""The trackers to which a run can be exported.

To add a tracker, write a module with a function `write` and add an entry to `TRACKERS`.
"""

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
"""A function that writes the files of a run to a folder that contains only the run's report. It returns the command to
show or upload the files."""


@dataclass(frozen=True)
class Tracker:
    """A tracker to which runs can be exported.

    title: the tracker's display name.
    module: the module that writes the tracker's files.
    needs: the name of a module that must be installed, and the name of an attribute that this module must have. The
        extra of optbench that installs this module has the tracker's name.
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
    """Return the function that writes the files of the tracker `name`.

    Raises:
        UsageError: there is no such tracker, or its package is not installed.
    """
    if name not in TRACKERS:
        raise UsageError(f"--to: {unknown('tracker', name, TRACKERS)}")
    tracker = TRACKERS[name]
    module, attribute = tracker.needs
    try:
        # The attribute is checked too, because W&B writes to folders named `wandb`, which import as empty packages.
        getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        package = module.partition(".")[0]
        lacking = isinstance(error, AttributeError) or (error.name or package).partition(".")[0] == package
        reason = "" if lacking else f" (it cannot be imported: {error})"
        raise UsageError(f"--to {name} needs {tracker.title}: pip install 'optbench[{name}]'{reason}") from None
    write: Write = importlib.import_module(tracker.module).write
    return write
