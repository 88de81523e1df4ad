"""Hessian-free optimisation: a few conjugate-gradient steps towards the natural gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from optbench.attention import unfused

SHORTEST = 2.0**-5
"""The smallest fraction to which a step that raises the loss is halved before it is rejected."""


class HessianFree(torch.optim.Optimizer):
    """Hessian-free optimizer, which minimises a quadratic model of the loss by conjugate gradients (Martens 2010).

        q(d) = g·d + ½ d·(F + λ) d,    F = E[Jᵀ (diag p - p pᵀ) J],    θ ← θ + lr · d,    d ≈ argmin q

    g is the gradient, J is the Jacobian of the logits, p is their softmax, and F is the Gauss-Newton matrix. For
    cross-entropy, F is the Fisher matrix, and d is the damped natural gradient (Pascanu & Bengio 2014). The gradient
    and all products with F use the same mini-batch. Conjugate gradients start from `carry` times the previous d and
    stop early (Kiros 2013). A step that raises the loss on its own mini-batch is halved up to five times and then
    rejected.

    With `adapt_damping`, λ follows the Levenberg-Marquardt rule: λ is multiplied by 3/2 if ρ < 1/4, and by 2/3 if
    ρ > 3/4, where ρ = (L(θ + d) - L(θ)) / q(d). The rule is intended for the complete data set. On mini-batches, ρ is
    measured on the data to which d was fitted, so λ falls until each step fits only its own mini-batch.

    The network must be a softmax classifier with logits (N, classes), trained on the mean cross-entropy.

    Args:
        model: the network; a forward hook on it stores the inputs of the last forward pass.
        lr: the fraction of d to take.
        damping: initial λ, > 0. adapt_damping: whether λ follows the rule above.
        iterations: maximum number of conjugate-gradient steps. tolerance: the fraction of the initial residual norm at
            which to stop. carry: the fraction of the previous d at which to start, in [0, 1).

    Example:
        >>> model, inputs, labels = nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3
        >>> optimizer = HessianFree(model)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = nn.functional.cross_entropy(model(inputs), labels)
        ...     loss.backward()
        ...     return loss
        >>> before = closure().item()
        >>> _ = optimizer.step(closure)
        >>> closure().item() < before
        True

    Reference: Martens 2010, "Deep learning via Hessian-free optimization"; Kiros 2013, arXiv:1301.3641.
    """

    SCRATCH = ("_inputs",)  # of the last forward pass

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1.0,
        damping: float = 1.0,
        adapt_damping: bool = False,
        iterations: int = 5,
        tolerance: float = 1e-3,
        carry: float = 0.9,
    ) -> None:
        super().__init__(model.parameters(), {"lr": lr, "damping": damping})
        self._model = model
        self._adapt, self._iterations, self._tolerance, self._carry = adapt_damping, iterations, tolerance, carry
        self._parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        self._inputs: tuple[Any, ...] = ()
        self._looking = True
        model.register_forward_hook(self._see)

    def _see(self, model: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> None:
        if self._looking and torch.is_grad_enabled():
            self._inputs = inputs

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the current gradients and the inputs of the last forward pass.

        Returns:
            the loss before the step.

        Raises:
            TypeError: no closure is given; it is needed to evaluate the step.
        """
        if closure is None:
            raise TypeError("HessianFree.step: expected a closure that recomputes loss and gradients, got None")
        group, parameters = self.param_groups[0], self._parameters
        gradient = [p.grad.clone() for p in parameters]
        with torch.enable_grad():
            before = _number(closure())
        start = [self._carry * self.state[p].get("direction", torch.zeros_like(p)) for p in parameters]
        multiply = self._gauss_newton(group["damping"])
        direction, expected = _minimise(multiply, gradient, start, self._iterations, self._tolerance)
        for p, d in zip(parameters, direction, strict=True):
            self.state[p]["direction"] = d
        after = self._take(closure, direction, group["lr"], before)
        if self._adapt:
            ratio = (after - before) / expected if expected < 0 else -math.inf
            if not ratio >= 0.25:  # true for a non-finite loss, too
                group["damping"] *= 3 / 2
            elif ratio > 0.75:
                group["damping"] *= 2 / 3
        return before

    def _take(self, closure: Callable[[], Any], direction: list[Tensor], lr: float, before: float) -> float:
        """Move along `direction`, halving the step while the loss exceeds `before`; return the loss after a full step.

        If the loss never falls to `before`, the weights are restored.
        """
        origin = [p.clone() for p in self._parameters]
        length, full = 1.0, math.nan
        while length >= SHORTEST:
            for p, o, d in zip(self._parameters, origin, direction, strict=True):
                torch.add(o, d, alpha=lr * length, out=p)
            with torch.enable_grad():
                loss = _number(closure())
            full = loss if length == 1.0 else full
            if loss <= before or not math.isfinite(before):
                return full
            length /= 2
        for p, o in zip(self._parameters, origin, strict=True):
            p.copy_(o)
        return full

    def _gauss_newton(self, damping: float) -> Callable[[list[Tensor]], list[Tensor]]:
        """Return a function that multiplies F + λ by a vector in two backward passes (Pearlmutter's trick)."""
        parameters = self._parameters
        self._looking = False
        with torch.enable_grad(), unfused():
            logits = self._model(*self._inputs).flatten(0, -2)
            # Jᵀu is linear in u, so the derivative of (Jᵀu)·v with respect to u is Jv.
            u = torch.zeros_like(logits, requires_grad=True)
            pulled = torch.autograd.grad(logits, parameters, u, create_graph=True)
        self._looking = True
        p = logits.detach().softmax(1)

        def multiply(vector: list[Tensor]) -> list[Tensor]:
            (moved,) = torch.autograd.grad(pulled, u, vector, retain_graph=True)
            curved = p * (moved - (p * moved).sum(1, keepdim=True)) / len(p)
            found = torch.autograd.grad(logits, parameters, curved, retain_graph=True)
            return [f + damping * v for f, v in zip(found, vector, strict=True)]

        return multiply


def _minimise(
    multiply: Callable[[list[Tensor]], list[Tensor]],
    gradient: list[Tensor],
    start: list[Tensor],
    iterations: int,
    tolerance: float,
) -> tuple[list[Tensor], float]:
    """Minimise q(x) = gradient·x + ½ x·Mx, M positive definite, by conjugate gradients; return x and q(x)."""
    x = start
    product = multiply(x)
    residual = [-g - m for g, m in zip(gradient, product, strict=True)]
    towards = [r.clone() for r in residual]
    square = _dot(residual, residual)
    enough = tolerance**2 * square
    for _ in range(iterations):
        if not square > 0:  # at the minimum, or NaN
            break
        product = multiply(towards)
        alpha = square / _dot(towards, product)
        x = [a + alpha * t for a, t in zip(x, towards, strict=True)]
        residual = [r - alpha * m for r, m in zip(residual, product, strict=True)]
        square, last = _dot(residual, residual), square
        if square <= enough:
            break
        towards = [r + (square / last) * t for r, t in zip(residual, towards, strict=True)]
    # Mx = -gradient - residual, so q(x) = ½ (gradient·x - residual·x).
    return x, 0.5 * (_dot(gradient, x) - _dot(residual, x))


def _number(loss: Any) -> float:
    return float(loss.detach()) if isinstance(loss, Tensor) else float(loss)


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return math.fsum(float((x * y).sum(dtype=torch.float64)) for x, y in zip(a, b, strict=True))
