"""The vision transformer: agreement with PyTorch's encoder, members together, initial weights, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from optbench.data import InputSpec
from optbench.engine.taps import Tap
from optbench.models import Network, build, initialise, materialised
from optbench.optimizers.ends import ends
from optbench.suite.schema import ModelSettings
from tests.models.together import check_together, drawn

CIFAR = InputSpec((3, 32, 32))
SMALL = {"layers": 2, "width": 12, "heads": 3}


def vit(inputs: InputSpec = CIFAR, **settings: Any) -> Network:
    network = build(ModelSettings.of("vit", **{**SMALL, **settings}), inputs, 10)
    assert isinstance(network, Network)
    return network


def by_pytorch(w: dict[str, Tensor], x: Tensor, patch: int) -> Tensor:
    """Compute the logits with `nn.TransformerEncoderLayer` and the same weights."""
    stream = nn.functional.unfold(x, patch, stride=patch).mT @ w["patches.weight"].T + w["patches.bias"]
    stream = stream + w["positions.weight"]
    for i in range(SMALL["layers"]):
        layer = nn.TransformerEncoderLayer(
            SMALL["width"], SMALL["heads"], 4 * SMALL["width"], 0.0, "gelu", batch_first=True, norm_first=True
        )
        own = {name.removeprefix(f"blocks.{i}."): value for name, value in w.items()}
        names = {
            "self_attn.out_proj": "attended",
            "linear1": "expand",
            "linear2": "contract",
            "norm1": "attention_norm",
            "norm2": "expand_norm",
        }
        state = {f"{theirs}.{part}": own[f"{ours}.{part}"] for theirs, ours in names.items() for part in PARTS}
        for part in PARTS:
            state[f"self_attn.in_proj_{part}"] = torch.cat([own[f"{n}.{part}"] for n in ("query", "key", "value")])
        layer.load_state_dict(state)
        stream = layer.to(x.dtype)(stream)
    features = nn.functional.layer_norm(stream, stream.shape[-1:], w["norm.weight"], w["norm.bias"]).mean(1)
    return features @ w["head.weight"].T + w["head.bias"]


PARTS = ("weight", "bias")


@pytest.mark.parametrize(
    ("shape", "patch"), [((3, 32, 32), None), ((1, 28, 28), 7), ((1, 14, 14), None), ((2, 6, 10), None)], ids=str
)
def test_logits_agree_with_pytorchs_encoder(shape: tuple[int, ...], patch: int | None) -> None:
    network: Any = materialised(vit(InputSpec(shape), patch=patch), torch.device("cpu"))
    weights = drawn(network)
    network.load_state_dict(weights)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    assert network.patch == {32: 4, 28: 7, 14: 2, 10: 2}[shape[-1]]
    double = {name: weight.double() for name, weight in weights.items()}
    expected = by_pytorch(double, x.double(), network.patch)
    torch.testing.assert_close(network.double()(x.double()), expected, rtol=1e-6, atol=1e-6)
    assert expected.std() > 0.1, "the weights must affect the logits"
    hidden = list(network.hidden(x.double()))
    places = shape[1] * shape[2] // network.patch**2
    assert [tuple(t.shape) for pair in hidden for t in pair] == [
        (3, places, 48), (3, places, 12), (3, places, 48), (3, 12)
    ]  # fmt: skip
    assert Tap(1, before=True).rows(hidden[0][0], 1).shape == (3 * places, 48), "a row for each patch"
    torch.testing.assert_close(network.head(hidden[-1][1]), expected, rtol=1e-6, atol=1e-6)


def test_gradients_of_members_together_equal_those_alone() -> None:
    check_together(vit(InputSpec((1, 14, 14))), (1, 14, 14))


def test_initial_weights_follow_the_reference_except_for_the_head() -> None:
    network = vit(width=96, heads=4)
    found = initialise(network, torch.Generator().manual_seed(0))
    assert list(found) == [name for name, _ in network.named_parameters()]
    for name, weight in found.items():
        if name.endswith("bias"):
            assert not weight.any(), name
            continue
        if "norm" in name:
            assert (weight == 1).all(), name
            continue
        fan_out, fan_in = weight.shape
        if name.startswith("blocks"):
            bound = math.sqrt(6 / (fan_in + fan_out))
            expected = scipy.stats.uniform(-bound, 2 * bound)
        elif name.startswith("positions"):
            expected = scipy.stats.norm(scale=0.02)
        else:
            cut = scipy.stats.truncnorm(-2, 2)
            expected = scipy.stats.truncnorm(-2, 2, scale=1 / math.sqrt(fan_in) / cut.std())
        assert scipy.stats.kstest(weight.flatten().double().numpy(), expected.cdf).pvalue > 1e-4, name


def test_positions_and_head_are_marked_as_ends() -> None:
    """Optimizers of hidden matrices leave ends to Adam, as in every transformer."""
    assert ends(vit(), "head.weight") == {"positions.weight", "head.weight"}


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        (CIFAR, {"patch": 5}, r"patch: expected a divisor of 32 rows and 32 columns \(1, 2, 4, 8, 16 or 32\), got 5"),
        (InputSpec((1, 3, 4)), {"patch": 2}, r"patch: expected a divisor of 3 rows and 4 columns \(1\), got 2"),
        (CIFAR, {"heads": 5}, "heads: expected a divisor of the width 12, got 5"),
        (InputSpec((784,)), {}, r"expected images \(channels, rows, columns\), got inputs of shape \(784,\)"),
    ],
)
def test_incompatible_settings_are_refused(inputs: InputSpec, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vit(inputs, **settings)
