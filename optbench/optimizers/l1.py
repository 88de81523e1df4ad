"""An L1 penalty on the weights, applied as a proximal step after any base optimizer: a baseline for sparsity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from optbench.errors import OptimizerError
from optbench.optimizers.closures import evaluated
from optbench.optimizers.wrapper import Wrapper


class L1(Wrapper):
    """Wrapper that soft-thresholds the weights after every step (Daubechies et al. 2004; ISTA if the base is SGD).

        w ← base step,    w ← sign(w) max(|w| - lr λ, 0)     for weights; biases and gains are unchanged

    Unlike a subgradient of λ‖w‖₁ in the loss, the proximal step produces exact zeros and is not rescaled by an adaptive
    base.

    Args:
        params: parameters, or groups of them.
        base: the optimizer that takes the steps, e.g. `{"target": "sgd", "lr": 0.1}`. In the formula, lr
            is the current learning rate of the base.
        strength: λ, the strength of the penalty.

    Reference: arXiv:math/0307152.

    Raises:
        OptimizerError: as in `Wrapper`, or the base has no `lr`.

    Example:
        >>> weights = torch.nn.Parameter(torch.tensor([[1.0, 0.01]]))
        >>> weights.grad = torch.zeros(1, 2)
        >>> L1([weights], base={"target": "sgd", "lr": 0.1}, strength=0.5).step()
        >>> weights.data
        tensor([[0.9500, 0.0000]])
    """

    def __init__(self, params: Iterable[Any], base: Mapping[str, Any], strength: float = 1e-5) -> None:
        super().__init__("l1", params, base, {"strength": strength})
        if any("lr" not in group for group in self.base.param_groups):
            raise OptimizerError(f"l1 cannot wrap {base['target']}, which has no lr for the threshold")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; return the loss of `closure`, or None without a closure."""
        loss = evaluated(closure)
        self.base.step()
        rates = {p: group["lr"] for group in self.base.param_groups for p in group["params"]}
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim >= 2 and p.grad is not None:
                    p.copy_(torch.nn.functional.softshrink(p, float(rates[p] * group["strength"])))
        return loss
