"""The engine's execution options for a kind of device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from optbench.engine.recording import Recorder, recorder


@dataclass(frozen=True)
class Execution:
    """Execution options that depend on the kind of device."""

    together: bool
    """True if one library call processes all members, and stopped members stay in the stack until half of them have
    stopped, because an accelerator would otherwise be idle. On a CPU, each member is processed separately and takes no
    unnecessary steps."""
    record: Recorder | None
    """The function that records work on the device; None if work is not recorded."""

    @staticmethod
    def on(device: torch.device) -> Execution:
        return Execution(device.type != "cpu", recorder(device))
