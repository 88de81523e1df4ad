"""The networks used to measure cost: published sizes, agreement with PyTorch's layers, and real text."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optbench.costing import networks
from optbench.costing.sizes import SIZES, Size
from optbench.models.gpt import Gpt

GPT = Size("micro", "", "gpt", 1, 16, 4, 128, 12, 3)
BERT = Size("micro", "", "bert", 1, 16, 4, 400, 12, 4, masked=0.25)


def count(model: nn.Module, *prefixes: str) -> int:
    """Count all parameters, or only those whose names begin with one of these prefixes."""
    return sum(p.numel() for name, p in model.named_parameters() if name.startswith(prefixes or ""))


def test_bert_base_has_the_published_parameters() -> None:
    model = networks.network(SIZES["bert-base"], "meta")
    assert count(model) == 110_106_428, "with its heads for pre-training"
    assert count(model, "bert.") == 109_482_240, "without"
    assert count(model) - count(model, "bert.pooler", "cls.seq") == 109_514_298, "for masked tokens only"
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["bert.embeddings.word_embeddings.weight"] == (30_522, 768)
    assert shapes["bert.embeddings.position_embeddings.weight"] == (512, 768)
    assert shapes["bert.encoder.layer.11.attention.self.query.weight"] == (768, 768)
    assert shapes["bert.encoder.layer.0.intermediate.dense.weight"] == (3072, 768)
    assert shapes["cls.predictions.bias"] == (30_522,)
    assert max(math.prod(shape) for shape in shapes.values()) == 30_522 * 768


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_other_networks_are_the_shipped_gpt(name: str) -> None:
    size = SIZES[name]
    layers, d = size.layers, size.width
    # GPT-2 has 12 d² + 13 d parameters per layer; here the head is not tied to the embedding.
    expected = 12 * layers * d * d + 13 * layers * d + (2 * size.vocabulary + size.context) * d + 2 * d
    model = networks.network(size, "meta")
    assert isinstance(model, Gpt)
    assert count(model) == expected


def copied(layer: nn.TransformerEncoderLayer, ours: dict[str, Any]) -> None:
    """Copy the weights of our layer to PyTorch's."""
    with torch.no_grad():
        for name in ("weight", "bias"):
            joined = torch.cat([getattr(part, name) for part in ours["in"]])
            getattr(layer.self_attn, f"in_proj_{name}").copy_(joined)
            pairs = {
                "self_attn.out_proj": "out",
                "linear1": "up",
                "linear2": "down",
                "norm1": "norm1",
                "norm2": "norm2",
            }
            for theirs, own in pairs.items():
                getattr(layer.get_submodule(theirs), name).copy_(getattr(ours[own], name))


def perturbed(model: nn.Module) -> nn.Module:
    """Return perturbed weights, because initial biases are 0 and gains 1."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def test_bert_agrees_with_pytorchs_layers() -> None:
    model: Any = perturbed(networks.network(BERT)).double()
    layer, table = model.bert["encoder"]["layer"][0], model.bert["embeddings"]
    own, after = layer["attention"]["self"], layer["attention"]["output"]
    d = BERT.width
    theirs = nn.TransformerEncoderLayer(d, BERT.heads, 4 * d, 0.0, nn.functional.gelu, 1e-12, True).double()
    named = {"in": [own["query"], own["key"], own["value"]], "out": after["dense"], "norm1": after["LayerNorm"]}
    named |= {"up": layer["intermediate"]["dense"], "down": layer["output"]["dense"]}
    copied(theirs, named | {"norm2": layer["output"]["LayerNorm"]})
    tokens, segments, places = networks.batch(BERT, 0).inputs
    summed = table["word_embeddings"](tokens) + table["token_type_embeddings"](segments)
    x = theirs(table["LayerNorm"](summed + table["position_embeddings"].weight[: BERT.context]))
    head = model.cls["predictions"]["transform"]
    hidden = head["LayerNorm"](nn.functional.gelu(head["dense"](x.flatten(0, 1))))
    words = (hidden @ table["word_embeddings"].weight.T + model.cls["predictions"].bias)[places]
    follows = model.cls["seq_relationship"](model.bert["pooler"]["dense"](x[:, 0]).tanh())
    for found, expected in zip(model(tokens, segments, places), (words, follows), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("size", "classes"), [(GPT, [128]), (BERT, [400, 2])])
def test_the_initial_loss_is_that_of_guessing_and_every_parameter_has_a_gradient(
    size: Size, classes: list[int]
) -> None:
    torch.manual_seed(0)
    model = networks.network(size)
    batch = networks.batch(size, 0)
    loss = networks.loss(model(*batch.inputs), batch.targets)
    assert float(loss.detach()) == pytest.approx(sum(map(math.log, classes)), rel=0.02)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_batches_are_text_and_depend_only_on_the_step() -> None:
    def text(tokens: Tensor) -> bytes:
        return bytes(tokens.tolist())

    first, again, second = (networks.batch(GPT, step) for step in (0, 0, 1))
    assert torch.equal(first.inputs[0], again.inputs[0])
    assert not torch.equal(first.inputs[0], second.inputs[0])
    whole = text(networks.tokens(128))
    for row, wanted in zip(first.inputs[0], first.targets[0].view(first.inputs[0].shape), strict=True):
        assert text(row) + text(wanted[-1:]) in whole
        assert torch.equal(row[1:], wanted[:-1])


def test_masked_tokens_are_targets_and_random_second_halves_are_labelled() -> None:
    tokens, segments, places = networks.batch(BERT, 0).inputs
    wanted, follows = networks.batch(BERT, 0).targets
    assert len(wanted) == round(0.25 * tokens.numel()) == (tokens == networks.MASK).sum()
    restored = tokens.flatten().clone()
    restored[places] = wanted
    joined = bytes(networks.tokens(400).short().numpy().tobytes())
    half = BERT.context // 2
    assert segments[0].tolist() == [0] * half + [1] * half
    for row, whole in zip(restored.view(tokens.shape), follows.tolist(), strict=True):
        found = row.short().numpy()
        assert found[:half].tobytes() in joined
        assert (found.tobytes() in joined) == bool(whole)


def test_parameters_are_classified_by_kind() -> None:
    kinds = networks.kinds(networks.network(BERT, "meta"))
    assert kinds["bert.embeddings.word_embeddings.weight"] == kinds["bert.embeddings.position_embeddings.weight"]
    assert kinds["bert.embeddings.word_embeddings.weight"] == "embeddings, heads"
    assert kinds["cls.seq_relationship.weight"] == "embeddings, heads"
    assert kinds["bert.pooler.dense.weight"] == "matrices"
    assert kinds["cls.predictions.bias"] == kinds["bert.pooler.dense.bias"] == "vectors"
