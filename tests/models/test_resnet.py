"""The residual network: published sizes, a plain forward pass, initial weights, refusals."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from optbench.data import InputSpec
from optbench.models import Network, build, initialise, materialised
from optbench.suite.schema import ModelSettings
from tests.models.together import check_together

CIFAR, SMALL = InputSpec((3, 32, 32)), InputSpec((1, 14, 14))


def resnet(inputs: InputSpec = CIFAR, **settings: Any) -> Network:
    network = build(ModelSettings.of("resnet", **settings), inputs, 10)
    assert isinstance(network, Network)
    return network


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (56, 0.85)], ids=lambda x: str(x))
def test_sizes_agree_with_table_6(depth: int, millions: float) -> None:
    """Table 6 of He et al. 2016, plus a bias and a gain per channel."""
    count = sum(parameter.numel() for parameter in resnet(depth=depth).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.5 * 10 ** -len(str(millions).partition(".")[2]))
    # By stage: convolutions, their gains and biases, and the head.
    n = (depth - 2) // 6
    widths = [16] + [16] * n + [32] * n + [64] * n
    blocks = sum(9 * b * (a + b) + 4 * b for a, b in pairwise(widths))
    assert count == 27 * 16 + 2 * 16 + blocks + 650


def written_out(w: dict[str, Tensor], x: Tensor, norm: str, groups: int) -> Tensor:
    """Compute the training-mode logits of a network with two blocks per stage, with normalisation as formulas."""

    def normalised(x: Tensor, name: str) -> Tensor:
        if norm == "batch":
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
            y = (x - mean) / (var + 1e-5).sqrt()
        else:
            parts = x.reshape(len(x), groups, -1)
            mean, var = parts.mean(2, keepdim=True), parts.var(2, unbiased=False, keepdim=True)
            y = ((parts - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
        return y * w[f"{name}.weight"].view(-1, 1, 1) + w[f"{name}.bias"].view(-1, 1, 1)

    def convolved(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.weight"]
        patches = nn.functional.unfold(x, 3, padding=1, stride=stride)
        side = -(-x.shape[-1] // stride)
        return (kernel.flatten(1) @ patches).unflatten(2, (side, side))

    x = normalised(convolved(x, "stem"), "norm").clamp(min=0)
    for i in range(6):
        stride = 2 if i in (2, 4) else 1
        inner = normalised(convolved(x, f"blocks.{i}.first", stride), f"blocks.{i}.first_norm").clamp(min=0)
        after = normalised(convolved(inner, f"blocks.{i}.second"), f"blocks.{i}.second_norm")
        if stride == 2:
            zeros = torch.zeros_like(x[:, : x.shape[1] // 2, ::2, ::2])
            x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
        x = (after + x).clamp(min=0)
    return x.mean((2, 3)) @ w["head.weight"].T + w["head.bias"]


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        ({"norm": "batch"}, 0),
        ({"norm": "group"}, 6),
        ({"norm": "group", "groups": 2}, 2),
        ({"norm": "layer"}, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("inputs", [CIFAR, SMALL], ids=["32", "14"])
def test_logits_agree_with_a_plain_forward_pass(settings: dict[str, Any], groups: int, inputs: InputSpec) -> None:
    draws = torch.Generator().manual_seed(0)
    network: Any = materialised(resnet(inputs, depth=14, width=6, **settings), torch.device("cpu")).double()
    weights = {name: tensor.double() for name, tensor in initialise(network, draws).items()}
    weights |= {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=draws, dtype=torch.float64)
        for name, tensor in weights.items()
        if "norm" in name and name.endswith(("weight", "bias"))
    }
    network.load_state_dict(weights)
    x = torch.randn(3, *inputs.shape, generator=draws, dtype=torch.float64)
    expected = written_out(weights, x, settings["norm"], groups)
    torch.testing.assert_close(network.train()(x), expected, rtol=1e-10, atol=1e-10)
    hidden = list(network.hidden(x))
    assert len(hidden) == network.depth == 7
    torch.testing.assert_close(network.head(hidden[-1][1]), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(hidden[-1][0].relu().mean((2, 3)), hidden[-1][1])
    assert all(torch.equal(before.relu(), after) for before, after in hidden[:-1])


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_gradients_of_members_together_equal_those_alone(norm: str) -> None:
    check_together(resnet(SMALL, depth=8, width=4, norm=norm), SMALL.shape)


def test_initial_weights_follow_he_et_al() -> None:
    network = resnet()
    found = initialise(network, torch.Generator().manual_seed(0))
    assert list(found) == [name for name, _ in (*network.named_parameters(), *network.named_buffers())]
    for name, value in found.items():
        if name.endswith(("bias", "running_mean", "num_batches_tracked")):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        else:
            spread = math.sqrt(2 / math.prod(value.shape[1:]))
            values = (value.flatten().double() / spread).numpy()
            assert scipy.stats.kstest(values, scipy.stats.norm.cdf).pvalue > 1e-4, name


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        (CIFAR, {"depth": 21}, "depth: expected 6n \\+ 2, such as 20 or 26, got 21"),
        (CIFAR, {"depth": 2}, "depth: expected 6n \\+ 2, such as 8 or 14, got 2"),
        (CIFAR, {"groups": 4}, "groups: expected norm: group, got norm: batch, which has no groups"),
        (CIFAR, {"norm": "group", "groups": 3}, "groups: expected a divisor of the width 16, got 3"),
        (InputSpec((1, 4, 9)), {}, "expected images of at least 5 pixels per side, got 4x9"),
        (InputSpec((784,)), {}, r"expected images \(channels, rows, columns\), got inputs of shape \(784,\)"),
    ],
)
def test_incompatible_settings_are_refused(inputs: InputSpec, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resnet(inputs, **settings)
