"""The base class of wrappers around a base optimizer, which takes the steps and keeps the state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from optbench.optimizers.closures import evaluated
from optbench.optimizers.make import base_optimizer, begin_task
from optbench.optimizers.rates import Group, rate_groups


class Wrapper(torch.optim.Optimizer):
    """Optimizer that wraps a base optimizer and acts before or after each of its steps.

    Args:
        name: the wrapper's name, for error messages.
        params: parameters, or groups of them.
        base: the optimizer that takes the steps, e.g. `{"target": "adamw", "lr": 1e-3}`; the target is a name or
            `module:Class`.
        defaults: the wrapper's own settings.

    Raises:
        OptimizerError: the base is unknown, rejects its hyper-parameters, or needs more than gradients.
    """

    def __init__(self, name: str, params: Iterable[Any], base: Mapping[str, Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self.base = base_optimizer(name, base, [p for group in self.param_groups for p in group["params"]])
        self.state = getattr(self.base, "state", self.state)  # the wrapper itself has no state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step with the base; return the loss of `closure`, or None without a closure."""
        loss = evaluated(closure)
        self.base.step()
        return loss

    def begin_task(self) -> None:
        """Notify the base that a new task is beginning."""
        begin_task(self.base)

    def rate_groups(self, stepping: bool) -> list[Group]:
        """Return the base's parameter groups with a learning rate, for use by `rates.rate_groups`."""
        return rate_groups(self.base, stepping=stepping)

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)
        self.state = getattr(self.base, "state", self.state)
