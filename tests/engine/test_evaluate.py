"""Evaluating networks: inputs are normalised block by block into reused memory, without changing a bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import linear

from optbench.data import Dataset
from optbench.engine import Workspace, evaluate
from optbench.engine.batches import BLOCK, Normaliser
from optbench.engine.evaluate import Evaluator
from tests.conftest import small_suite

CPU = torch.device("cpu")


def test_features_equal_the_inputs_for_a_linear_model_across_chunks(
    mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "CHUNK", 70)
    suite = small_suite({"opt": {"target": "sgd"}}, model={"kind": "mlp", "hidden": []})
    workspace = Workspace.of(suite.experiments["small"], mnist, suite.seed, CPU)
    blueprint = workspace.blueprint("small", "net")
    normalise = Normaliser.of(mnist, workspace.experiment.protocol, CPU)
    test = workspace.family.sequence(0).test(0)
    assert len(test) > 140, "several chunks, the last one shorter"
    assert len(test) % 70
    weights = blueprint.start(suite.seed, 0)
    row = blueprint.layout.pack(weights)
    evaluator = Evaluator(blueprint, normalise)
    found = evaluator.read(row, test, with_logits=True)
    expected = normalise(test.inputs).flatten(1)
    assert torch.equal(found.features, expected)
    assert found.logits is not None
    torch.testing.assert_close(found.logits, linear(expected, weights["head.weight"], weights["head.bias"]))
    assert evaluator.score([row], [test])[0].loss == found.loss


@pytest.mark.parametrize("channels", [1, 3])
def test_normalising_a_large_array_equals_normalising_its_rows(channels: int) -> None:
    scale, shift = torch.rand(2, channels) + 0.1
    if channels == 1:
        normalise = Normaliser(scale[0], shift[0], scale.item())
    else:
        normalise = Normaliser(scale.reshape(-1, 1, 1), shift.reshape(-1, 1, 1), None)
    raw = torch.randint(0, 256, (3 * BLOCK // (channels * 400) + 7, channels, 20, 20), dtype=torch.uint8)
    assert raw.numel() > 3 * BLOCK
    out = torch.full(raw.shape, torch.nan)
    assert normalise(raw, out) is out
    expected = torch.cat([normalise(part) for part in raw.split(64)])
    assert torch.equal(out, expected)
    assert torch.equal(dataclasses.replace(normalise, same=True)(raw), raw.float())
