"""Powerpropagation: a parameterisation of the weights that favours large weights, for any base optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from optbench.optimizers.closures import evaluated
from optbench.optimizers.make import base_optimizer, begin_task
from optbench.optimizers.powers import power
from optbench.optimizers.rates import Group, rate_groups


class Powerpropagation(torch.optim.Optimizer):
    """Optimizer that trains φ, where the weights are w = φ |φ|^(α-1) (Schwarz et al. 2021).

        φ₀ = sign(w₀) |w₀|^(1/α),    ∂L/∂φ = α |φ|^(α-1) ∂L/∂w,    φ ← base step,    w = φ |φ|^(α-1)

    The formulas apply to weights (parameters with two or more axes); the base trains biases and gains directly. The
    steps are those of the reparameterised network. As an optimizer, however, the method starts from the same weights as
    every other optimizer, so that trials can be paired by seed. Furthermore, w itself is measured and pruned. The
    counterpart of this optimizer is `PowerSgd`.

    Args:
        params: parameters, or groups of them.
        base: the optimizer that takes the steps on φ, e.g. `{"target": "sgd", "lr": 0.1}`.
        alpha: the power, ≥ 1; with 1, the weights are trained by the base alone.

    Reference: arXiv:2110.00296.

    Raises:
        OptimizerError: as in `Wrapper`.

    Example:
        >>> weights = torch.nn.Parameter(torch.tensor([[1.0, 0.01]]))
        >>> weights.grad = torch.ones(1, 2)
        >>> Powerpropagation([weights], base={"target": "sgd", "lr": 0.1}, alpha=2.0).step()
        >>> weights.data  # the large weight moves by 0.36, the small one by about 0.004
        tensor([[0.6400, 0.0064]])
    """

    def __init__(self, params: Iterable[Any], base: Mapping[str, Any], alpha: float = 2.0) -> None:
        super().__init__(params, {"alpha": alpha})
        self._alpha = alpha
        self._rooted: float | None = None
        """The α for which the stored φ were computed; None before the first step."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._weights = [p for p in parameters if p.ndim >= 2]
        roots = {p: torch.nn.Parameter(torch.empty_like(p)) for p in self._weights}
        for p, root in roots.items():
            # `slope` is |φ|^(α-1), used by both the weight and the next gradient, so one power per step suffices.
            self.state[p].update(root=root, slope=torch.empty_like(p), weight=torch.full_like(p, torch.nan))
        self.base = base_optimizer("powerpropagation", base, [roots.get(p, p) for p in parameters])

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step on φ with the base; return the loss of `closure`, or None without a closure."""
        loss = evaluated(closure)
        for p in self._weights:
            state = self.state[p]
            # The roots are stale at the start, after the best weights are restored, and with another power. Otherwise
            # they are not recomputed, because the root of a power differs from the original number by rounding.
            if self._rooted != self._alpha or not torch.equal(p, state["weight"]):
                state["root"].copy_(p.sign() * p.abs().pow(1 / self._alpha))
                state["slope"].copy_(self._slope(state["root"]))
            state["root"].grad = None if p.grad is None else p.grad * state["slope"] * self._alpha
        self._rooted = self._alpha
        self.base.step()
        for p in self._weights:
            state = self.state[p]
            if p.grad is not None:
                state["slope"].copy_(self._slope(state["root"]))
                torch.mul(state["root"], state["slope"], out=p)
            state["weight"].copy_(p)
            state["root"].grad = None
        return loss

    def begin_task(self) -> None:
        """Notify the base that a new task is beginning."""
        begin_task(self.base)

    def rate_groups(self, stepping: bool) -> list[Group]:
        """Return the base's parameter groups with a learning rate, for use by `rates.rate_groups`."""
        return rate_groups(self.base, stepping=stepping)

    def _slope(self, root: Tensor) -> Tensor:
        return power(root.abs(), float(self._alpha - 1))

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state, the stored values of every weight, and the α for which they were computed."""
        own = [{name: value.detach() for name, value in self.state[p].items()} for p in self._weights]
        return {"base": self.base.state_dict(), "weights": own, "rooted": self._rooted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict["base"])
        self._rooted = state_dict["rooted"]
        with torch.no_grad():
            for p, kept in zip(self._weights, state_dict["weights"], strict=True):
                for name, value in kept.items():
                    self.state[p][name].copy_(value)
