"""The transformer: loss and gradients against a plain implementation, causality, initial weights, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.data import Dataset, InputSpec, Split
from optbench.engine.blueprint import Blueprint
from optbench.engine.gradients.bound import Bound
from optbench.engine.gradients.vmap import Vmap
from optbench.engine.stack import Layout
from optbench.errors import UsageError
from optbench.models import build, cross_entropy, initialise, materialised
from optbench.suite.schema import ModelSettings
from tests.conftest import small_suite
from tests.texts import small_text

TOKENS = InputSpec((9,), torch.int64, 7)
SMALL = {"layers": 2, "width": 12, "heads": 3}
TIED = pytest.mark.parametrize("tied", [False, True], ids=["separate head", "tied"])


def gpt(**settings: Any) -> nn.Module:
    return build(ModelSettings.of("gpt", **{**SMALL, **settings}), TOKENS, 7)


def drawn(network: nn.Module, scale: float = 1.0) -> dict[str, Tensor]:
    """Return initial weights scaled by `scale`, with perturbed biases and gains."""
    draws = torch.Generator().manual_seed(0)
    weights = initialise(network, draws)
    return {name: scale * w + 0.1 * (scale - 1) * torch.randn(w.shape, generator=draws) for name, w in weights.items()}


def tokens(batch: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    found = torch.randint(0, 7, (batch, 10), generator=torch.Generator().manual_seed(seed))
    return found[:, :-1].contiguous(), found[:, 1:].contiguous()


def plain_logits(w: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    """Compute logits sequence by sequence and head by head, with an explicit softmax."""
    rows = []
    for sequence in x:
        head = w["head.weight"]
        h = w.get("tokens.weight", head)[sequence] + w["positions.weight"][: len(sequence)]
        for layer in range(2):
            own = {name.removeprefix(f"blocks.{layer}."): v for name, v in w.items() if f"blocks.{layer}." in name}

            def linear(name: str, value: Tensor, own: dict[str, Tensor] = own) -> Tensor:
                return value @ own[f"{name}.weight"].T + own[f"{name}.bias"]

            z = norm(h, own["attention_norm.weight"], own["attention_norm.bias"])
            size = z.shape[1] // heads
            attended = []
            for i in range(heads):
                q, k, v = (linear(name, z)[:, i * size : (i + 1) * size] for name in ("query", "key", "value"))
                scores = (q @ k.T / math.sqrt(size)).exp().tril()
                attended.append(scores / scores.sum(1, keepdim=True) @ v)
            h = h + linear("attended", torch.cat(attended, 1))
            z = linear("expand", norm(h, own["expand_norm.weight"], own["expand_norm.bias"]))
            h = h + linear("contract", z * (1 + torch.erf(z / math.sqrt(2))) / 2)
        rows.append(norm(h, w["norm.weight"], w["norm.bias"]) @ head.T)
    return torch.stack(rows)


def norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * gain + bias


def plain_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return -(logits - logits.logsumexp(-1, keepdim=True)).gather(-1, targets[..., None]).mean()


@TIED
def test_loss_and_gradients_agree_with_a_plain_implementation(tied: bool) -> None:
    network = gpt(tied=tied)
    weights = {name: w.requires_grad_() for name, w in drawn(network, 3.0).items()}
    x, targets = tokens()
    loss = cross_entropy(functional_call(network, weights, (x,)), targets)
    expected = plain_loss(plain_logits(weights, x, SMALL["heads"]), targets)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(loss.item() - math.log(7)) > 0.1, "the weights must affect the loss"
    found = torch.autograd.grad(loss, list(weights.values()))
    for name, grad, other in zip(weights, found, torch.autograd.grad(expected, list(weights.values())), strict=True):
        assert grad.abs().max() > 1e-4 or name.endswith("key.bias"), f"{name} has no part in the loss"
        torch.testing.assert_close(grad, other, atol=1e-5, rtol=1e-5, msg=name)


@TIED
def test_gradients_of_members_together_equal_those_alone(tied: bool) -> None:
    network = gpt(tied=tied)
    layout = Layout.of({name: p.shape for name, p in network.named_parameters()})
    starts = [layout.pack(drawn(network, 1.0 + scale)) for scale in range(3)]
    weights = torch.stack(starts)
    grads, losses = torch.zeros_like(weights), torch.zeros(3)
    x, targets = (torch.stack(parts) for parts in zip(*(tokens(seed=seed) for seed in range(3)), strict=True))
    Vmap(network, layout, Bound(weights, grads, []))(x, targets, losses)
    for i, row in enumerate(starts):
        own = {name: view.clone().requires_grad_() for name, view in layout.views(row).items()}
        loss = cross_entropy(functional_call(network, own, (x[i],)), targets[i])
        assert losses[i].item() == pytest.approx(loss.item(), abs=1e-6)
        for name, grad in zip(own, torch.autograd.grad(loss, list(own.values())), strict=True):
            torch.testing.assert_close(layout.views(grads[i])[name], grad, atol=1e-5, rtol=1e-4)


def test_a_later_token_does_not_change_earlier_logits() -> None:
    network = gpt()
    weights = drawn(network, 3.0)
    x, _ = tokens()
    logits = functional_call(network, weights, (x,))
    for place in range(x.shape[1]):
        changed = x.clone()
        changed[:, place] = (changed[:, place] + 1) % 7
        found = functional_call(network, weights, (changed,))
        assert torch.equal(found[:, :place], logits[:, :place])
        assert (found[:, place:] != logits[:, place:]).any(-1).all(), "logits change from this position on"


def test_initial_weights_follow_gpt_2() -> None:
    settings = ModelSettings.of("gpt", layers=3, width=96, heads=4)
    network = build(settings, InputSpec((40,), torch.int64, 50), 50)
    found = initialise(network, torch.Generator().manual_seed(0))
    assert found.keys() == dict(network.named_parameters()).keys()
    for name, weight in found.items():
        if name.endswith("bias"):
            assert not weight.any()
        elif "norm" in name:
            assert (weight == 1).all()
        else:
            residual = name.endswith(("attended.weight", "contract.weight"))
            std = 0.02 / math.sqrt(6) if residual else 0.02
            values = (weight.flatten().double() / std).numpy()
            assert scipy.stats.kstest(values, scipy.stats.norm.cdf).pvalue > 1e-4, name
            assert values.std() == pytest.approx(1, rel=0.05), name


@TIED
def test_features_are_the_input_of_the_head(tied: bool) -> None:
    network = gpt(tied=tied)
    weights = drawn(network, 3.0)
    x, _ = tokens()
    copied: Any = materialised(network, torch.device("cpu"))
    copied.load_state_dict(weights)
    features = copied.features(x)
    assert features.shape == (*x.shape, SMALL["width"])
    torch.testing.assert_close(features @ weights["head.weight"].T, copied(x))
    hidden = list(copied.hidden(x))
    assert [tuple(part.shape) for layer in hidden for part in layer] == [(4, 9, 48), (4, 9, 12)] * 2
    assert torch.equal(hidden[-1][1], features)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 5}, "heads: expected a divisor of the width 12, got 5"),
        ({"context": 8}, r"context: expected at least the sequence length \(9\), got 8"),
    ],
)
def test_incompatible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpt(**settings)


def test_data_other_than_text_is_refused(mnist: Dataset) -> None:
    experiment = small_suite({"opt": {"target": "sgd"}}, model={"kind": "gpt"}).experiments["small"]
    with pytest.raises(UsageError, match=r"gpt: expected sequences of tokens \(positions,\), got inputs of shape"):
        Blueprint.of(experiment, "net", mnist, "here")
    text = small_text()
    halves = [Split(half.inputs, half.targets[:, -1].contiguous()) for half in (text.train, text.test)]
    with pytest.raises(UsageError, match="expected a target at each position, got one for each sequence"):
        Blueprint.of(experiment, "net", Dataset("text", halves[0], halves[1], text.classes), "here")


def test_a_longer_context_accepts_shorter_sequences() -> None:
    network = gpt(context=20)
    weights = drawn(network, 3.0)
    x, _ = tokens()
    assert weights["positions.weight"].shape == (20, 12)
    assert functional_call(network, weights, (x,)).shape == (4, 9, 7)
