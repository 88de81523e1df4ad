"""Sharpness-aware minimisation with any base optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from optbench.optimizers.wrapper import Wrapper


class Sam(Wrapper):
    """Wrapper that steps from w with the gradient at an adversarially perturbed point w + e (Foret et al. 2021).

        e = ρ g / ‖g‖,    g' = ∇L(w + e),    w ← base step from w with g'

    The norm ‖g‖ is taken over all parameters. The adaptive form (Kwon et al. 2021, arXiv:2102.11600), which is
    invariant to rescaling of weights, uses e = ρ w² g / ‖|w| g‖.

    Args:
        params: parameters, or groups of them.
        base: the optimizer that takes the steps, e.g. `{"target": "adamw", "lr": 1e-3}`; the target is a name or
            `module:Class`.
        rho: ρ, the radius of the perturbation, in units of the weights.
        adaptive: whether the radius is relative to each weight.
        steps: number of steps with SAM, counted over all tasks; later steps are those of the base alone. None: all.

    Example:
        >>> weights = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = Sam([weights], base={"target": "sgd", "lr": 0.1}, rho=0.5)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = weights.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> _ = closure()
        >>> _ = optimizer.step(closure)
        >>> round(weights.item(), 3)  # 1 - 0.1 · 2 · (1 + 0.5)
        0.7

    Reference: arXiv:2010.01412.

    Raises:
        OptimizerError: as in `Wrapper`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Mapping[str, Any],
        rho: float = 0.05,
        adaptive: bool = False,
        steps: int | None = None,
    ) -> None:
        super().__init__("sam", params, base, {"rho": rho, "adaptive": adaptive})
        self.steps, self.taken = steps, 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, using the current gradients at w to find e, and `closure` to compute the gradients at w + e.

        Returns:
            the loss at w + e; None for steps without SAM.

        Raises:
            TypeError: no closure is given for a step with SAM.
        """
        if self.steps is not None:
            if self.taken >= self.steps:
                self.base.step()
                return None
            self.taken += 1
        if closure is None:
            raise TypeError("Sam.step: expected a closure that recomputes loss and gradients, got None")
        moved: list[tuple[Tensor, Tensor]] = []
        squares = [
            ((p.abs() * p.grad) if group["adaptive"] else p.grad).square().sum()
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        # if the gradient vanishes, e has no direction and vanishes too
        norm = torch.stack(squares).sum().sqrt().clamp_min(torch.finfo(torch.float32).tiny) if squares else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    moved.append((p, p.clone()))
                    direction = p.square() * p.grad if group["adaptive"] else p.grad
                    p.add_(direction / norm, alpha=group["rho"])
        with torch.enable_grad():
            loss = closure()
        for p, before in moved:
            p.copy_(before)  # instead of subtracting e, which would leave a rounding error
        self.base.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state and, if `steps` is set, the step count."""
        found = super().state_dict()
        return found if self.steps is None else {"base": found, "taken": self.taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.steps is not None:
            self.taken, state_dict = state_dict["taken"], state_dict["base"]
        super().load_state_dict(state_dict)
