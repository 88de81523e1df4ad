"""Training a transformer: alone and among others in every lane, dropout, and optimizers for embeddings and head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from optbench.engine import Workspace
from optbench.engine.blueprint import Blueprint
from optbench.models import materialised
from optbench.optimizers.ends import is_end, mark
from optbench.optimizers.make import maker
from optbench.optimizers.registry import complete, find
from optbench.suite import Suite
from tests.conftest import same_bits, small_suite, train_suite, trial_row
from tests.texts import GPT, small_text, text_suite

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": [0.5, 0.1], "momentum": 0.9},
    "adamw": {"lr": [3e-3, 1e-2]},
    "shampoo": {"lr": [0.1, 0.03]},
    "soap": {"lr": [3e-3, 1e-2]},
    "muon": {"lr": [0.02, 0.01], "fallback_lr": 3e-3},
    "kfac": {"lr": [0.1, 0.03]},
    "sam": {"base": {"target": "adamw", "lr": 3e-3}, "rho": [0.05, 0.1]},
}


def suite(optimizer: str, model: dict[str, Any] = GPT, **settings: Any) -> Suite:
    return text_suite({"target": optimizer, **OPTIMIZERS[optimizer], **settings}, model)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_trial_alone_equals_the_trial_among_others(optimizer: str) -> None:
    text = small_text()
    together = train_suite(suite(optimizer), text)
    assert [trial_row(result).status for result in together] == ["ok"] * 4, trial_row(together[0]).error_message
    for i in (0, 3):
        assert same_bits(train_suite(suite(optimizer), text, only=i)[0], together[i])
    weights = [result.weights for result in together]
    assert weights[0] is not None
    assert weights[1] is not None
    for name, weight in weights[0].items():
        assert name.endswith("key.bias") or not torch.equal(weight, weights[1][name]), f"{name} was not trained"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("optimizer", ["adamw", "sam"])
def test_dropout_is_drawn_for_each_trial_independently(optimizer: str) -> None:
    text = small_text()
    with_dropout = suite(optimizer, {**GPT, "dropout": 0.2})
    together = train_suite(with_dropout, text)
    assert {trial_row(result).status for result in together} == {"ok"}
    assert "trained member by member: dropout" in (trial_row(together[0]).note or "")
    assert same_bits(train_suite(with_dropout, text, only=2)[0], together[2])
    without = train_suite(suite(optimizer), text, only=2)[0]
    assert trial_row(without).init_hash == trial_row(together[2]).init_hash
    assert not same_bits(without, together[2])


def ends_and_rest(optimizer: str, **settings: Any) -> tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]:
    """Build an optimizer over the parameters of a transformer as its lane does."""
    text = small_text()
    workspace = Workspace.of(suite("adamw").experiments["small"], text, 0, torch.device("cpu"))
    blueprint: Blueprint = workspace.blueprint("small", "net")
    assert blueprint.ends == {"tokens.weight", "positions.weight", "head.weight"}
    network = materialised(blueprint.network, torch.device("cpu"))
    network.load_state_dict(blueprint.start(0, 0))
    named = dict(network.named_parameters())
    mark(network, blueprint.ends)
    return maker(find(optimizer), complete(optimizer, settings))(list(named.values())), named


def test_optimizers_for_hidden_matrices_train_embeddings_and_head_by_adam() -> None:
    muon, named = ends_and_rest("muon", lr=0.1, fallback_lr=0.25)
    by_muon, by_adamw = ({id(p) for g in part.param_groups for p in g["params"]} for part in muon.parts)  # type: ignore[attr-defined]
    hidden = {name for name, p in named.items() if p.ndim == 2 and name.startswith("blocks.")}
    assert {name for name, p in named.items() if id(p) in by_muon} == hidden
    assert {name for name, p in named.items() if id(p) in by_adamw} == named.keys() - hidden

    soap, named = ends_and_rest("soap", lr=0.1, weight_decay=0.01)
    adamw = {name: nn.Parameter(p.detach().clone()) for name, p in named.items() if is_end(p)}
    settings: dict[str, Any] = {"lr": 0.1, "betas": (0.95, 0.95), "weight_decay": 0.0, "eps": 1e-8}
    plain = torch.optim.Adam(adamw.values(), **settings)
    draws = torch.Generator().manual_seed(0)
    for step in range(4):
        for name, p in named.items():
            p.grad = torch.randn(p.shape, generator=draws)
            if step and name in adamw:  # the first step of SOAP only collects statistics
                adamw[name].grad = p.grad.clone()
        soap.step()
        if step:
            plain.step()
            with torch.no_grad():
                for p in adamw.values():
                    p.mul_(1 - 0.1 * 0.01)
    for name, p in adamw.items():
        torch.testing.assert_close(named[name].detach(), p.detach(), atol=1e-4, rtol=1e-4, msg=name)
        assert soap.state[named[name]]["GG"] == [[], []]
    assert soap.state[named["blocks.0.expand.weight"]]["GG"][1].shape == (16, 16)


def test_networks_without_embeddings_have_no_ends() -> None:
    experiment = small_suite({"opt": {"target": "sgd"}}).experiments["small"]
    flat = Blueprint.of(experiment, "net", _images(), "here")
    assert flat.ends == frozenset()


def _images() -> Any:
    from optbench.data import Dataset, Split

    half = Split(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4) % 2)
    return Dataset("images", half, half, 2, mean=(0.0,), std=(1.0,))
