"""Regularisation towards the initial weights, for any base optimizer, to preserve plasticity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from optbench.optimizers.closures import evaluated
from optbench.optimizers.wrapper import Wrapper


class L2Init(Wrapper):
    """Wrapper that penalises the squared distance from the initial weights (Kumar et al. 2023, arXiv:2308.11958).

        L(w) + λ‖w - w₀‖²,    g ← g + 2λ(w - w₀)

    The penalty applies to all parameters, including biases and gains. It is part of the loss, as in the paper, so an
    adaptive base rescales its gradient like the rest.

    In optbench's engine, the penalty is part of the gradients (`engine.anchors`), and the base steps in its own lane,
    whatever its needs. In a plain training loop, this class does the same for bases that need only gradients.

    Args:
        params: parameters, or groups of them, at their initial values w₀.
        base: the optimizer that takes the steps, e.g. `{"target": "adam", "lr": 1e-3}`.
        strength: λ ≥ 0; the paper tunes it over 1e-5, 1e-4, 1e-3 and 1e-2.

    After each step, every parameter has its original gradient again.

    Raises:
        OptimizerError: as in `Wrapper`.

    Example:
        >>> weights = torch.nn.Parameter(torch.zeros(1))  # w₀ = 0
        >>> optimizer = L2Init([weights], base={"target": "sgd", "lr": 0.1}, strength=0.5)
        >>> weights.data, weights.grad = torch.ones(1), torch.zeros(1)
        >>> _ = optimizer.step()
        >>> round(weights.item(), 3)  # 1 - 0.1 · 2 · 0.5 · (1 - w₀)
        0.9
    """

    def __init__(self, params: Iterable[Any], base: Mapping[str, Any], strength: float = 1e-3) -> None:
        super().__init__("l2-init outside of a run", params, base, {"strength": strength})
        self.start = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step with the base; return the loss of `closure`, or None without a closure.

        The returned loss does not include the penalty.
        """
        loss = evaluated(closure)
        clean = []
        for group, start in zip(self.param_groups, self.start, strict=True):
            for p, initial in zip(group["params"], start, strict=True):
                if p.grad is not None:
                    clean.append((p, p.grad))
                    p.grad = p.grad + (p - initial) * (2 * group["strength"])
        self.base.step()
        for p, grad in clean:
            p.grad = grad
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state and the initial weights."""
        return {"base": super().state_dict(), "start": self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["base"])
        for kept, given in zip(self.start, state_dict["start"], strict=True):
            for initial, value in zip(kept, given, strict=True):
                initial.copy_(value)
