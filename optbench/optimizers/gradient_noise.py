"""Annealed Gaussian noise on the gradient of any base optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from optbench.optimizers.make import base_optimizer, begin_task


class GradientNoise(torch.optim.Optimizer):
    """Adds noise whose variance falls with the number of steps (Neelakantan et al. 2015, arXiv:1511.06807).

        g ← g + N(0, σ_t²),    σ_t² = η / (1 + t)^γ,    t = 0, 1, ...

    Args:
        params: parameters, or groups of them.
        base: the optimizer that steps: `{"target": "adam", "lr": 1e-3}`.
        generator: draws the noise, on the CPU, whatever the device.
        eta: variance of the first step. gamma: how fast it falls; .55 in the paper.
        steps: no noise from this step on; None: never without.

    The gradients are left as they were. Raises OptimizerError as `Sam` does.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Mapping[str, Any],
        generator: torch.Generator,
        eta: float = 0.01,
        gamma: float = 0.55,
        steps: int | None = None,
    ) -> None:
        super().__init__(params, {"eta": eta, "gamma": gamma})
        self.generator, self.steps, self.taken = generator, steps, 0
        self.base = base_optimizer("gradient-noise", base, [p for group in self.param_groups for p in group["params"]])
        self.state = self.base.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of the base from noisy gradients; the loss of `closure`, where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        clean = []
        for group in self.param_groups if self.steps is None or self.taken < self.steps else ():
            sigma = (group["eta"] / (1 + self.taken) ** group["gamma"]) ** 0.5
            for p in group["params"]:
                if p.grad is not None:
                    clean.append((p, p.grad))
                    noise = torch.randn(p.shape, generator=self.generator).to(p)
                    p.grad = p.grad.add(noise, alpha=sigma)
        self.base.step()
        for p, grad in clean:
            p.grad = grad
        self.taken += 1
        return loss

    def begin_task(self) -> None:
        """A new task begins: the base may want to know."""
        begin_task(self.base)

    def state_dict(self) -> dict[str, Any]:
        """The base's, the clock, and the state of the generator: going on draws what would have been drawn."""
        return {"base": self.base.state_dict(), "taken": self.taken, "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict["base"])
        self.state = self.base.state
        self.taken = state_dict["taken"]
        self.generator.set_state(state_dict["generator"])
