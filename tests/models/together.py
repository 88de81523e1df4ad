"""A check that members computed together equal each computed alone, for image networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from optbench.engine.blueprint import Blueprint
from optbench.engine.gradients.bound import Bound
from optbench.engine.gradients.vmap import Vmap
from optbench.models import Network, cross_entropy, initialise


def drawn(network: Network, seed: int = 0) -> dict[str, Tensor]:
    """Return perturbed initial weights, so that biases and gains matter."""
    draws = torch.Generator().manual_seed(seed)
    return {name: w + 0.2 * torch.randn(w.shape, generator=draws) for name, w in initialise(network, draws).items()}


def check_together(network: Network, shape: tuple[int, ...]) -> None:
    """Check that the losses and gradients of three members together, by `torch.func`, equal those of each alone."""
    layout = Blueprint.of_ours(network).layout
    starts = [layout.pack(drawn(network, seed)) for seed in range(3)]
    weights = torch.stack(starts)
    grads, losses = torch.zeros_like(weights), torch.zeros(3)
    draws = torch.Generator().manual_seed(1)
    x, targets = torch.randn(3, 4, *shape, generator=draws), torch.randint(0, 10, (3, 4), generator=draws)
    Vmap(network, layout, Bound(weights, grads, []))(x, targets, losses)
    for i, row in enumerate(starts):
        own = {name: view.clone().requires_grad_() for name, view in layout.views(row).items()}
        loss = cross_entropy(functional_call(network, own, (x[i],)), targets[i])
        assert losses[i].item() == pytest.approx(loss.item(), rel=1e-5)
        for name, grad in zip(own, torch.autograd.grad(loss, list(own.values())), strict=True):
            torch.testing.assert_close(layout.views(grads[i])[name], grad, atol=1e-5, rtol=1e-4, msg=name)
