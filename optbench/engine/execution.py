"""The engine's execution options for a kind of device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from optbench.engine.recording import Recorder, recorder


@dataclass(frozen=True)
class Execution:
    """Execution options that depend on the kind of device."""

    together: bool
    """Whether one library call processes all members, and stopped members stay in the stack until half of it has
    stopped, because an accelerator would otherwise be idle. A CPU processes each member separately, with no unnecessary
    steps."""
    record: Recorder | None
    """How work is recorded on the device, if it is."""

    @staticmethod
    def on(device: torch.device) -> Execution:
        return Execution(device.type != "cpu", recorder(device))
