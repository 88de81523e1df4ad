"""One optimizer for the first steps and another for the rest, to find out which of the two determines the basin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch

from optbench.optimizers.closures import evaluated
from optbench.optimizers.make import base_optimizer, begin_task
from optbench.optimizers.rates import Group, rate_groups
from optbench.optimizers.spec import FALLBACK
from optbench.optimizers.takeover import held, same_kind, take_settings


class Switch(torch.optim.Optimizer):
    """Optimizer that takes `at` steps with `first` and all later steps with `then`.

    Args:
        params: parameters, or groups of them.
        first, then: the two optimizers, e.g. `{"target": "adam", "lr": 1e-3}`.
        at: number of steps taken by `first`; with 0, `then` takes all steps.
        state: with `reset`, `then` starts without state. With `keep`, `then` continues from the state of `first` if
            both are the same optimizer with the same inner optimizers. The settings become those given for `then`, or
            the class's defaults where none are given.

    Steps are counted over all tasks.

    Raises:
        OptimizerError: as in `Wrapper`.

    Reference: Pascanu et al. 2025, arXiv:2507.12224, section 1: the early phase of training determines the basin.

    Example:
        >>> weights = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = Switch([weights], {"target": "sgd", "lr": 0.1}, {"target": "sgd", "lr": 0.5}, at=1)
        >>> for _ in range(2):
        ...     weights.grad = torch.ones(1)
        ...     optimizer.step()
        >>> round(weights.item(), 3)  # 1 - 0.1 - 0.5
        0.4
    """

    def __init__(
        self,
        params: Iterable[Any],
        first: Mapping[str, Any],
        then: Mapping[str, Any],
        at: int = 100,
        state: Literal["reset", "keep"] = "reset",
    ) -> None:
        super().__init__(params, {})
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.first, self.then = (base_optimizer("switch", base, parameters) for base in (first, then))
        self.at, self.taken = at, 0
        # `then` has yet to receive the state of `first`
        self._pending = (
            state == "keep" and at > 0 and first["target"] == then["target"] and same_kind(self.first, self.then)
        )
        self._at_start = held(self.first) if self._pending else {}
        self._named = sorted({*_names(first), *_names(then)})
        self.state = getattr(self._active, "state", self.state)

    @property
    def _active(self) -> torch.optim.Optimizer:
        return self.first if self.taken < self.at else self.then

    def step(self, closure: Any = None) -> Any:
        """Take one step of the active optimizer; return the loss of `closure`, or None without a closure."""
        loss = evaluated(closure)
        self._hand_over()
        self._active.step()
        self.state = getattr(self._active, "state", self.state)
        self.taken += 1
        return loss

    def begin_task(self) -> None:
        """Notify the active optimizer that a new task is beginning."""
        self._hand_over()
        begin_task(self._active)

    def rate_groups(self, stepping: bool) -> list[Group]:
        """Return the active optimizer's parameter groups with a learning rate, for use by `rates.rate_groups`."""
        if stepping:  # settings must be handed over before they are scaled
            self._hand_over()
        return rate_groups(self._active, stepping=stepping)

    def _hand_over(self) -> None:
        """Continue with `then` from the state of `first`, if the switch is due and `state` is `keep`.

        The settings of `then` are copied to the instance of `first`. Copying the state of `first` to `then` would not
        suffice: `state_dict()` may omit part of an optimizer's state, and `load_state_dict()` casts the state to the
        dtype of the parameters.
        """
        if self._pending and self.taken == self.at:
            take_settings(self.first, self._at_start, self.then, set(self._named))
            self.first, self.then = self.then, self.first
            self._pending, self._at_start = False, {}
            self.state = getattr(self._active, "state", self.state)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both optimizers, the step count, and whether the state has yet to be handed over."""
        clock = {"taken": self.taken, "pending": self._pending}
        return {"first": self.first.state_dict(), "then": self.then.state_dict(), **clock}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first.load_state_dict(state_dict["first"])
        self.then.load_state_dict(state_dict["then"])
        self.taken, self._pending = state_dict["taken"], state_dict["pending"]
        self._at_start = self._at_start if self._pending else {}
        self.state = getattr(self._active, "state", self.state)


def _names(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the hyper-parameter names of an optimizer, its inner optimizers and its fallback."""
    for name, value in settings.items():
        yield name.removeprefix(FALLBACK)
        if isinstance(value, Mapping):
            yield from _names(value)
