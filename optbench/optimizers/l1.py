"""An L1 penalty on the weights over any base optimizer, by its proximal step: what one would do for sparsity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from optbench.errors import OptimizerError
from optbench.optimizers.make import base_optimizer, begin_task


class L1(torch.optim.Optimizer):
    """Soft-thresholds the weights after every step of the base (Daubechies et al. 2004; over SGD: ISTA).

        w ← base step,    w ← sign(w) max(|w| - lr λ, 0)     for weights; biases and gains as they are

    Unlike a subgradient of λ‖w‖₁ in the loss it reaches exact zeros, and an adaptive base does not rescale it.

    Args:
        params: parameters, or groups of them.
        base: the optimizer that steps: `{"target": "sgd", "lr": 0.1}`; its current rate is the lr above.
        strength: λ.

    Reference: arXiv:math/0307152.

    Raises OptimizerError as `Sam` does, and where the base has no `lr`.
    """

    def __init__(self, params: Iterable[Any], base: Mapping[str, Any], strength: float = 1e-5) -> None:
        super().__init__(params, {"strength": strength})
        self.base = base_optimizer("l1", base, [p for group in self.param_groups for p in group["params"]])
        if any("lr" not in group for group in self.base.param_groups):
            raise OptimizerError(f"l1 cannot stand over {base['target']}, which has no lr to threshold by")
        self.state = self.base.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; the loss of `closure`, where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.base.step()
        rates = {p: group["lr"] for group in self.base.param_groups for p in group["params"]}
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim >= 2 and p.grad is not None:
                    p.copy_(torch.nn.functional.softshrink(p, float(rates[p] * group["strength"])))
        return loss

    def begin_task(self) -> None:
        """A new task begins: the base may want to know."""
        begin_task(self.base)

    def state_dict(self) -> dict[str, Any]:
        """The base's; the threshold keeps nothing between steps."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)
        self.state = self.base.state
