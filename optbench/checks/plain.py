"""Training with the optimizer in a plain PyTorch loop, as in a user's script, without the engine or its lanes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from optbench.checks.problem import Problem
from optbench.engine.lanes.per_member import StepCall
from optbench.engine.randomness import own_draws
from optbench.optimizers.make import begin_task


class PlainTraining:
    """One network and one optimizer, with seed 0 and a fixed batch order."""

    def __init__(self, problem: Problem, weights: Mapping[str, Tensor] | None = None) -> None:
        """Start from `weights`, by default the initial weights."""
        self._problem = problem
        self._needs = problem.spec.needs
        self.network = problem.network(problem.start(0) if weights is None else weights)
        self.parameters = list(self.network.parameters())
        self.noise = problem.noise(0)
        self.optimizer = problem.make(self.network, self.noise)
        self._train()

    def begin_task(self) -> None:
        """Notify the optimizer that a task is beginning, as the engine does."""
        begin_task(self.optimizer)

    def run(self, first: int, count: int) -> None:
        """Take steps `first`, ..., `first + count - 1`."""
        for step in range(first, first + count):
            self.gradients(step)
            self.update(step)

    def gradients(self, step: int) -> Tensor:
        """Compute gradients of the mean cross-entropy on batch `step`, store them in `grad`, and return the loss."""
        inputs, labels = self._problem.batch(step)
        with self._around(), torch.enable_grad():
            loss = nn.functional.cross_entropy(self.network(inputs), labels)
            trained = [p for p in self.parameters if p.requires_grad]  # an optimizer may freeze some
            found = torch.autograd.grad(loss, trained, create_graph="create_graph" in self._needs)
            for parameter, grad in zip(trained, found, strict=True):
                # optimizers detach gradients in place, which is not possible for a view
                parameter.grad = grad.clone() if grad._is_view() else grad
        return loss.detach()

    def _around(self) -> AbstractContextManager[Any]:
        optimizer: Any = self.optimizer
        return optimizer.around_forward() if "around_forward" in self._needs else contextlib.nullcontext()

    def update(self, step: int) -> None:
        """Take one optimizer step with the current gradients."""
        with self.draws():
            self.step(step)

    def draws(self) -> AbstractContextManager[None]:
        """Return a context manager that, as in the engine, seeds the global generators if the optimizer uses them."""
        if "random" in self._needs:
            return own_draws(self.noise, torch.device("cpu"))
        return contextlib.nullcontext()

    def step(self, step: int) -> None:
        """Take one step like `update`, but without seeding the global generators."""
        call = StepCall.of(self._problem.spec, self.optimizer)
        if "loss" in self._needs:
            self.optimizer.zero_grad()
        loss = self.loss(step) if call.loss else None
        call(self.optimizer, lambda *_, **__: self.loss(step), loss)
        if self._needs & {"create_graph", "loss"}:  # a gradient with a graph would keep the graph alive
            self.optimizer.zero_grad()

    def loss(self, step: int) -> Tensor:
        """Return the loss on batch `step`, as a closure does. Compute gradients too, unless the optimizer does that."""
        if "loss" not in self._needs:
            return self.gradients(step)
        inputs, labels = self._problem.batch(step)
        with torch.enable_grad():
            return nn.functional.cross_entropy(self.network(inputs), labels)

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the weights used for training, by name."""
        return {name: parameter.detach().clone() for name, parameter in self.network.named_parameters()}

    def _train(self) -> None:
        if "modes" in self._needs:
            self.optimizer.train()  # type: ignore[attr-defined]  # the need `modes` implies this method
