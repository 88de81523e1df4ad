"""SGD preconditioned by a power of the weights' magnitudes, P = diag(|θ|^β), to induce sparsity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from optbench.optimizers.closures import evaluated
from optbench.optimizers.powers import power

SETTINGS = ("lr", "beta", "bias_scale", "weight_decay")


class PowerSgd(torch.optim.Optimizer):
    """SGD that moves large weights faster than small ones (Pascanu et al. 2025, arXiv:2507.12224, section 3.2).

        θ ← θ - lr |θ|^β g     for weights (two or more axes);     θ ← θ - lr s g     for biases and gains

    It is the counterpart of Powerpropagation (Schwarz et al. 2021), which trains φ by SGD with learning rate lr_φ for
    weights w = φ|φ|^(α-1). The two gradient flows agree for β = 2 - 2/α, lr = α² lr_φ and s = 1/α². A weight that is
    exactly 0 stays 0 if β > 0.

    Args:
        params: parameters, or groups of them; with `stacked`, of shape (M, *shape) for M members.
        lr: learning rate. With `stacked`, this and the next three settings are numbers or tensors of shape (M,).
        beta: the power, ≥ 0; 0 is SGD.
        bias_scale: s, the learning rate of biases and gains relative to lr.
        weight_decay: decoupled, for weights only: θ ← θ - lr · weight_decay · θ.
        stacked: whether parameters have a leading axis for independent members.

    Example:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[1.0, 0.1]])
        >>> layer.weight.grad = torch.ones(1, 2)
        >>> PowerSgd(layer.parameters(), lr=0.1).step()
        >>> layer.weight.data  # the large weight moves by 0.1, the small one by 0.01
        tensor([[0.9000, 0.0900]])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.1,
        beta: float | Tensor = 1.0,
        bias_scale: float | Tensor = 1.0,
        weight_decay: float | Tensor = 0.0,
        stacked: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "bias_scale": bias_scale, "weight_decay": weight_decay})
        self._stacked = stacked
        first = self.param_groups[0]["params"][0]
        self._count = first.shape[0] if stacked else 1

    def step(self, closure: Any = None) -> Any:
        """Take one step; return the loss of `closure`, or None without a closure."""
        loss = evaluated(closure)
        self.work()
        return loss

    @torch.no_grad()
    def work(self) -> None:
        """Take one step with the current gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                lr, beta, scale, decay = (self._along(group[name], p) for name in SETTINGS)
                if p.ndim - self._stacked >= 2:
                    p.sub_(lr * (power(p.abs(), beta) * p.grad + decay * p))
                else:
                    p.sub_(lr * scale * p.grad)

    def upcoming(self) -> str:
        """Return a label for the work of the next step: a constant, because every step does the same work."""
        return "step"

    def advance(self) -> None:
        """Do nothing: there is no refresh clock."""

    def begin_task(self) -> None:
        """Do nothing: there is no state that depends on the task."""

    def fallbacks(self) -> Tensor:
        """Return zeros, (M,): there are no factorisations that could fail."""
        return torch.zeros(self._count, dtype=torch.int64)

    def _along(self, value: float | Tensor, p: Tensor) -> float | Tensor:
        """Return a setting as a number, or as a tensor (M, 1, ..., 1) that broadcasts against a stacked parameter."""
        return value.to(p).reshape(-1, *[1] * (p.ndim - 1)) if isinstance(value, Tensor) else value
