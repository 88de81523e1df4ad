"""One optimizer for the first steps, another for the rest: which of the two decides the basin?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Literal

import torch

from optbench.optimizers.closures import evaluated
from optbench.optimizers.make import base_optimizer, begin_task
from optbench.optimizers.spec import FALLBACK


class Switch(torch.optim.Optimizer):
    """Trains with `first` for `at` steps and with `then` from there on (PROTOCOLS: early basin selection).

    Args:
        params: parameters, or groups of them.
        first, then: the two optimizers, as in `{"target": "adam", "lr": 1e-3}`.
        at: steps of `first`; 0 is pure `then`.
        state: `reset`: `then` begins afresh; `keep`: where both are the same optimizer it goes on from the state of
            `first`, with its own hyper-parameters.

    The switch counts the steps of the whole training, over all tasks. Raises OptimizerError as `Wrapper` does.

    Reference: Pascanu et al. 2025, arXiv:2507.12224, section 1: the early phase of training decides the basin.
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
        # Whether `then` is still to be given what `first` has gathered.
        self._pending = state == "keep" and first["target"] == then["target"] and at > 0
        self._own = set(_names(then))
        self.state = self._active.state

    @property
    def _active(self) -> torch.optim.Optimizer:
        return self.first if self.taken < self.at else self.then

    def step(self, closure: Any = None) -> Any:
        """One step of the one whose turn it is; the loss of `closure`, where one is given."""
        loss = evaluated(closure)
        self._hand_over()
        self._active.step()
        self.state = self._active.state
        self.taken += 1
        return loss

    def begin_task(self) -> None:
        """A new task begins: the one whose turn it is may want to know."""
        self._hand_over()
        begin_task(self._active)

    def _hand_over(self) -> None:
        """At the switch: what `first` has gathered to `then`, which keeps the settings that it was given."""
        if self._pending and self.taken == self.at:
            self.then.load_state_dict(_under_settings(self.first.state_dict(), self.then.state_dict(), self._own))
            self._pending = False

    def state_dict(self) -> dict[str, Any]:
        """Both states and the clock."""
        clock = {"taken": self.taken, "pending": self._pending}
        return {"first": self.first.state_dict(), "then": self.then.state_dict(), **clock}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first.load_state_dict(state_dict["first"])
        self.then.load_state_dict(state_dict["then"])
        self.taken, self._pending = state_dict["taken"], state_dict["pending"]
        self.state = self._active.state


def _names(settings: Mapping[str, Any]) -> Iterator[str]:
    """The hyper-parameters of an optimizer, of those inside it, and of its fallback."""
    for name, value in settings.items():
        yield name.removeprefix(FALLBACK)
        if isinstance(value, Mapping):
            yield from _names(value)


def _under_settings(gathered: Any, fresh: Any, names: Set[str]) -> Any:
    """A state dict with the hyper-parameters of another: clocks that are kept in its groups stay."""
    if isinstance(gathered, list):
        return [_under_settings(a, b, names) for a, b in zip(gathered, fresh, strict=True)]
    found = dict(gathered)
    for key in found.keys() & {"base", "first", "then", "parts"}:  # a wrapper's, or one with a fallback
        found[key] = _under_settings(gathered[key], fresh[key], names)
    if "param_groups" in found:
        found["param_groups"] = [
            {**old, **{name: value for name, value in new.items() if name in names}}
            for old, new in zip(gathered["param_groups"], fresh["param_groups"], strict=True)
        ]
    return found
