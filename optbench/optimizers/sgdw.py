"""SGD with weight decay that does not enter the momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from optbench.optimizers.closures import evaluated


class Sgdw(torch.optim.SGD):
    """SGD with decoupled weight decay, as in AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 1).

        w ← w - lr λ w,    then PyTorch's SGD

    The decay applies to all parameters. `torch.optim.SGD` adds λw to the gradient, and thus to the momentum; without
    momentum, the two optimizers are equivalent. In Shampoo, SOAP, Muon and AdamW, `weight_decay` is always decoupled.

    Args:
        params: parameters, or groups of them; groups can differ in `weight_decay`.
        weight_decay: λ ≥ 0, multiplied by lr as in PyTorch's AdamW.
        lr, momentum, dampening, nesterov, fused: as in `torch.optim.SGD`.

    Example:
        >>> weights = torch.nn.Parameter(torch.ones(1))
        >>> weights.grad = torch.zeros(1)
        >>> Sgdw([weights], lr=0.1, momentum=0.9, weight_decay=0.5).step()
        >>> round(weights.item(), 3)  # 1 - 0.1 · 0.5
        0.95
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, fused=fused)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; return the loss of `closure`, or None without a closure."""
        loss = evaluated(closure)
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            for p in group["params"]:
                if decay and p.grad is not None:
                    p.mul_(1 - group["lr"] * decay)
            group["weight_decay"] = 0.0
        try:
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        return loss
