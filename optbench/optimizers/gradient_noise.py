"""Annealed Gaussian noise on the gradients, for any base optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from optbench.optimizers.closures import evaluated
from optbench.optimizers.wrapper import Wrapper


class GradientNoise(Wrapper):
    """Wrapper that adds noise of decaying variance to the gradients (Neelakantan et al. 2015, arXiv:1511.06807).

        g ← g + N(0, σ_t²),    σ_t² = η / (1 + t)^γ,    t = 0, 1, ...

    Args:
        params: parameters, or groups of them.
        base: the optimizer that takes the steps, e.g. `{"target": "adam", "lr": 1e-3}`.
        generator: the CPU generator that draws the noise, whatever device the parameters are on.
        eta: variance at the first step. gamma: exponent of the decay; .55 in the paper.
        steps: number of steps with noise; None: all.

    After each step, every parameter has its original gradient again.

    Raises:
        OptimizerError: as in `Wrapper`.

    Example:
        >>> weights = torch.nn.Parameter(torch.zeros(3))
        >>> weights.grad = torch.zeros(3)
        >>> noise = torch.Generator().manual_seed(0)
        >>> GradientNoise([weights], {"target": "sgd", "lr": 1.0}, noise, eta=0.01).step()
        >>> bool((weights != 0).all())
        True
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
        super().__init__("gradient-noise", params, base, {"eta": eta, "gamma": gamma})
        self.generator, self.steps, self.taken = generator, steps, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step of the base with noisy gradients; return the loss of `closure`, or None without a closure."""
        loss = evaluated(closure)
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

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state, the step count, and the state of the generator that draws the noise."""
        return {"base": super().state_dict(), "taken": self.taken, "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["base"])
        self.taken = state_dict["taken"]
        self.generator.set_state(state_dict["generator"])
