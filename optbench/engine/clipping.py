"""Gradient clipping for each member of a stack, as set by `protocol.clip_norm`.

Legend: M members, P padded parameter count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optbench.engine.recording import Recorded, Recordings


class Clip:
    """Scales each member's gradient to a norm of at most `bound`, like `torch.nn.utils.clip_grad_norm_`.

        g ← g · min(1, bound / (‖g‖ + 1e-6))

    ‖g‖ is the norm over all parameters of a member. The factor stays on the device, so clipping can be recorded (see
    `recording`). This class clips the gradients for all lanes except `lanes.per_member`, which clips each instance's
    own gradients.
    """

    def __init__(self, bound: float, grads: Tensor, recordings: Recordings) -> None:
        """grads: (M, P), scaled in place; the padding must be zero."""
        self._bound = bound
        # Row by row on a CPU, where the order of summation may depend on the number of rows.
        self._parts = list(grads.unsqueeze(1).unbind()) if grads.device.type == "cpu" else [grads]
        self._work: Recorded[None] = Recorded("clipping", recordings)

    def __call__(self) -> None:
        """Clip the current gradients."""
        self._work(self._scale, lambda: self._parts)

    @torch.no_grad()
    def _scale(self) -> None:
        for rows in self._parts:
            norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            rows.mul_((self._bound / (norms + 1e-6)).clamp_(max=1.0))
