"""Partial or complete renewal of a network at the start of each task, for any base optimizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from optbench.errors import OptimizerError
from optbench.optimizers.make import base_optimizer
from optbench.optimizers.wrapper import Wrapper


class ShrinkAndPerturb(Wrapper):
    """Wrapper that mixes the weights with those of a new network at the start of each task except the first.

        w ← α w + β u,    u new initial weights

    The mixing applies to all parameters, including biases and gains; buffers are unchanged. The noise β u is
    proportional to the scale of each layer's initialisation. α = 0 and β = 1 give a new network. The optimizer's state
    is kept unless the protocol resets it (`optimizer_state: reset`). Resetting is necessary for optimizers that store
    weights in their state: schedule-free, for example, would return to the stored weights.

    In optbench's engine, the model's initialisation draws u from a random stream given by the trial seed and the task,
    so that u is the same for every optimizer (`engine.controls`). The base steps in its own lane, whatever its needs.
    In a plain training loop, this class does the same for bases that need only gradients, except that it draws u by
    calling `reset_parameters()` on each module.

    Args:
        model: the network; each module with parameters must have `reset_parameters()`, as PyTorch's layers do.
        base: the optimizer that takes the steps, e.g. `{"target": "sgd", "lr": 0.1}`.
        shrink: α, from 0 to 1. perturb: β.
        generator: seeds the draws of u; None: the global generator.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = ShrinkAndPerturb(model, base={"target": "sgd", "lr": 0.1}, shrink=0.5, perturb=0.0)
        >>> before = model.weight.detach().clone()
        >>> for task in range(2):
        ...     optimizer.begin_task()  # then train on the task
        >>> bool(model.weight.allclose(0.5 * before))
        True

    Reference: Ash & Adams 2020, arXiv:1910.08475, who shrink and perturb before each new round of training data.
    (Dohare et al. 2024, Nature 632, do so at every step instead.)

    Raises:
        OptimizerError: as in `Wrapper`, or a module with parameters has no `reset_parameters()`.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Mapping[str, Any],
        shrink: float = 0.4,
        perturb: float = 0.1,
        generator: torch.Generator | None = None,
        *,
        name: str = "shrink-and-perturb",
    ) -> None:
        self._make = (f"{name} outside of a run", dict(base))
        super().__init__(self._make[0], model.parameters(), base, {"shrink": shrink, "perturb": perturb})
        for part in model.modules():
            if list(part.parameters(recurse=False)) and not callable(getattr(part, "reset_parameters", None)):
                raise OptimizerError(f"{self._make[0]}: expected {type(part).__name__} to have reset_parameters()")
        self._model, self.generator, self.tasks = model, generator, 0

    @torch.no_grad()
    def begin_task(self) -> None:
        """Renew the network unless this is the first task, then notify the base."""
        self.tasks += 1
        if self.tasks > 1:
            group = self.param_groups[0]
            for p, new in zip(self._model.parameters(), self._fresh().parameters(), strict=True):
                p.mul_(group["shrink"]).add_(new * group["perturb"])
            self._renewed()
        super().begin_task()

    def _renewed(self) -> None:
        """Do nothing, so that the base keeps its state. Called after the weights have been renewed."""

    def _fresh(self) -> nn.Module:
        """Return a copy of the network with newly drawn weights, seeded from the generator."""
        draws = self.generator or torch.default_generator
        seed = int(torch.randint(2**31, (), generator=draws))
        fresh = copy.deepcopy(self._model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in fresh.modules():
                if callable(reset := getattr(part, "reset_parameters", None)):
                    reset()
        return fresh

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state, the number of tasks begun, and the generator's state."""
        draws = self.generator.get_state() if self.generator is not None else None
        return {"base": super().state_dict(), "tasks": self.tasks, "generator": draws}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["base"])
        self.tasks = state_dict["tasks"]
        if self.generator is not None:
            self.generator.set_state(state_dict["generator"])


class FreshNetwork(ShrinkAndPerturb):
    """Wrapper that trains a new network on each task: the control for learning without earlier tasks.

    At the start of each task except the first, the weights and the optimizer's state are replaced with those of a new
    network. In optbench's engine, buffers are replaced, too, and the base is reconstructed, whatever its needs. The
    class is used like `ShrinkAndPerturb`.

    Args:
        model, base, generator: as in `ShrinkAndPerturb`.
    """

    def __init__(self, model: nn.Module, base: Mapping[str, Any], generator: torch.Generator | None = None) -> None:
        super().__init__(model, base, 0.0, 1.0, generator, name="fresh-network")

    def _renewed(self) -> None:
        self.base = base_optimizer(*self._make, list(self._model.parameters()))
        self.state = getattr(self.base, "state", self.state)
