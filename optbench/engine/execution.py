"""How a device wants its work: which of the engine's ways serve it best."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from optbench.engine.recording import Recorder, recorder


@dataclass(frozen=True)
class Execution:
    """What follows for the engine from the kind of device."""

    together: bool
    """One call of a library for all members, and who stops early stays in the stack until half of it has: an
    accelerator is idle with less. On a CPU each member by itself, and no step more than needed."""
    record: Recorder | None
    """How work is recorded there, if it is."""

    @staticmethod
    def on(device: torch.device) -> Execution:
        return Execution(device.type != "cpu", recorder(device))
