"""The engine's execution options, chosen for a device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from optbench.engine.recording import Recorder, recorder


@dataclass(frozen=True)
class Execution:
    """Execution options that depend on the kind of device."""

    together: bool
    """True to process all members in one library call, because an accelerator would otherwise be partly idle; stopped
    members then stay in the stack until half of the stack has stopped. False, as on a CPU, to process members one by
    one, so that stopped members take no steps."""
    record: Recorder | None
    """The function that records repeated work on the device; None if work is not recorded."""

    @staticmethod
    def on(device: torch.device) -> Execution:
        return Execution(device.type != "cpu", recorder(device))
