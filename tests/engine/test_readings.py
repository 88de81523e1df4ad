"""Rank at every layer, before and after its activation, on each task and pooled, agrees with NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optbench.data import Dataset, InputSpec
from optbench.engine import TrialResult, Workspace
from optbench.engine.batches import Normaliser
from optbench.engine.blueprint import Blueprint
from optbench.engine.evaluate import CHUNK, Evaluator
from optbench.engine.taps import Modules, tapped
from optbench.metrics import rank
from optbench.metrics.own import MetricSettings
from optbench.metrics.place import Place
from optbench.models import build, initialise
from optbench.store.tables import MetricRow, SpectrumRow
from optbench.suite.schema import ModelSettings, Protocol
from optbench.tasks import Examples
from tests.conftest import small_suite, timeless, train_suite
from tests.metrics.test_rank import reference
from tests.refusals import refusal

DEFINITIONS = (
    *("effective_rank", "effective_rank_uncentred", "effective_rank_correlation", "effective_rank_sv", "stable_rank"),
    *("participation_ratio", "srank", "pca99_centred", "eigenvalue_count_relative", "eigenvalue_count"),
)
PLACES = (Place(), Place(None, "before"), Place(1), Place(1, "before"), Place(2))
LAYERS = ("layers.0", "layers.1")


def entry(kind: str, place: Place, **settings: Any) -> dict[str, Any]:
    chosen = {name: value for name, value in place.settings.items() if value != Place().settings[name]}
    return {"kind": kind, **settings, **chosen}


READINGS = [
    *(entry(kind, place) for kind, place in itertools.product(DEFINITIONS, PLACES)),
    *(entry("eigenvalue_count_relative", place, relative=0.001) for place in PLACES),
]


def suite(metrics: list[Any]) -> Any:
    return small_suite(
        {"sgd": {"target": "sgd", "lr": 0.1}},
        seeds=1,
        model={"kind": "mlp", "hidden": [20, 12]},
        metrics=metrics,
        max_epochs=1,
        train_examples=320,
        test_examples=300,
    )


@pytest.fixture(scope="module")
def run(mnist: Dataset) -> TrialResult:
    (found,) = train_suite(suite(["default", *READINGS, "weight_effective_rank", "weight_stable_rank"]), mnist)
    return found


def values(result: TrialResult, task: int | None) -> dict[str, float | None]:
    """Return the final value of each metric of features."""
    rows = [row for row in result.rows if isinstance(row, MetricRow) and row.layer == "features"]
    return {row.metric: row.value for row in rows if (row.after_task, row.task) == (2, task)}


def layers(result: TrialResult, mnist: Dataset, task: int) -> dict[Place, Tensor]:
    """Compute the hidden layers on the test data of a task by a separate forward pass."""
    chosen = suite([])
    experiment = chosen.experiments["small"]
    workspace = Workspace.of(experiment, mnist, chosen.seed, torch.device("cpu"))
    test = workspace.family.sequence(0).test(task)
    x = Normaliser.of(mnist, experiment.protocol, torch.device("cpu"))(test.inputs).flatten(1)
    w = result.weights
    assert w is not None
    found: dict[Place, Tensor] = {}
    for number, name in enumerate(LAYERS, start=1):
        before = nn.functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])
        x = before.relu()
        found |= {Place(number, "before"): before, Place(number): x}
    return {**found, Place(): x, Place(None, "before"): before}


def test_every_reading_equals_numpy(run: TrialResult, mnist: Dataset) -> None:
    tasks = [layers(run, mnist, task) for task in range(2)]
    data: list[tuple[int | None, Mapping[Place, Tensor]]] = [(1, tasks[0]), (2, tasks[1])]
    data += [(None, {place: torch.cat([task[place] for task in tasks]) for place in PLACES})]
    compared = 0
    for task, features in data:
        found = values(run, task)
        for place in PLACES:
            expected = reference(features[place])
            lam = np.linalg.eigvalsh(np.cov(features[place].double().numpy(), rowvar=False))
            expected["eigenvalue_count_relative relative=0.001"] = int((lam > 0.001 * lam.max()).sum())
            for kind in (*DEFINITIONS, "eigenvalue_count_relative relative=0.001"):
                base, _, setting = kind.partition(" ")
                name = f"{base} {','.join(part for part in (setting, place.name) if part)}".rstrip()
                assert found[name] == pytest.approx(expected[kind], rel=1e-10), (task, name)
                compared += 1
            size = f" {place.name}" if place.name else ""
            assert (found[f"features_n{size}"], found[f"features_d{size}"]) == tuple(features[place].shape)
    assert compared == 3 * 11 * len(PLACES)


def test_the_last_hidden_layer_has_the_values_of_the_features(run: TrialResult) -> None:
    for task in (1, 2, None):
        found = values(run, task)
        assert [found[f"{kind} layer=2"] for kind in DEFINITIONS] == [found[kind] for kind in DEFINITIONS]


def test_readings_do_not_affect_other_rows(run: TrialResult, mnist: Dataset) -> None:
    (plain,) = train_suite(suite(["default"]), mnist)
    default = {row.metric for row in plain.rows if isinstance(row, MetricRow)}
    others = [row for row in run.rows if not isinstance(row, MetricRow) or row.metric in default]
    assert list(map(timeless, others)) == list(map(timeless, plain.rows))
    assert sum(isinstance(row, SpectrumRow) for row in plain.rows) == 4 * 12, (
        "spectra of task 1 twice, of task 2, and pooled"
    )


def test_ranks_of_weights_are_taken_by_layer_and_averaged_by_size(run: TrialResult) -> None:
    rows = [row for row in run.rows if isinstance(row, MetricRow) and row.after_task == 2]
    weights = {name: w.double().numpy() for name, w in (run.weights or {}).items() if w.ndim == 2}
    for metric in ("weight_effective_rank", "weight_stable_rank"):
        found = {row.layer: row.value for row in rows if row.metric == metric}
        assert found.keys() == {*weights, None}
        for name, w in weights.items():
            sigma = np.linalg.svd(w, compute_uv=False)
            p = sigma / sigma.sum()
            entropy, stable = np.exp(-(p * np.log(p)).sum()), (sigma**2).sum() / sigma[0] ** 2
            assert found[name] == pytest.approx(entropy if metric == "weight_effective_rank" else stable)
        total = sum(w.size for w in weights.values())
        mean = sum((found[name] or 0.0) * w.size for name, w in weights.items()) / total
        assert found[None] == pytest.approx(mean)


def test_feature_maps_of_a_convolution_are_read_by_channel_in_chunks(mnist: Dataset) -> None:
    """There are more examples than fit in a chunk, and more pixels than are decomposed at a time."""
    draws = torch.Generator().manual_seed(0)
    network = build(ModelSettings.of("cnn", channels=[3], hidden=5), InputSpec((1, 28, 28)), 10)
    blueprint = Blueprint.of_ours(network)
    row = blueprint.layout.pack(initialise(network, draws))
    inputs = torch.randint(0, 256, (CHUNK + 9, 1, 28, 28), generator=draws, dtype=torch.uint8)
    examples = Examples(inputs, torch.zeros(CHUNK + 9, dtype=torch.int64))
    normalise = Normaliser.of(mnist, Protocol(), torch.device("cpu"))
    taps = [blueprint.tap(place) for place in (Place(1, "before"), Place(1), Place(None, "before"))]
    assert blueprint.tap(Place(2)) is None
    read = Evaluator(blueprint, normalise).read(row, examples, taps=[tap for tap in taps if tap is not None])
    w = blueprint.layout.unpack(row)
    with torch.no_grad():
        before = nn.functional.conv2d(normalise(inputs), w["layers.0.weight"], w["layers.0.bias"], padding=1)
        after = nn.functional.max_pool2d(before.relu(), 2)
        last = nn.functional.linear(after.flatten(1), w["project.weight"], w["project.bias"])
    by_pixel = [maps.movedim(1, -1).reshape(-1, 3) for maps in (before, after)]
    for tap, expected in zip(taps, (*by_pixel, last), strict=True):
        assert tap is not None
        found = read.elsewhere[tap]
        assert (found.examples, found.width) == expected.shape
        f = expected.double().numpy()
        np.testing.assert_allclose(found.sigma, np.linalg.svd(f, compute_uv=False), rtol=1e-5)
        np.testing.assert_allclose(found.lam, np.linalg.eigvalsh(np.cov(f, rowvar=False))[::-1], rtol=1e-5)


class Own(nn.Module):
    """A user's model with an in-place activation, a module that is called twice, and a functional last activation."""

    def __init__(self, last: nn.Module | None) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.act, self.twice, self.last = nn.ReLU(inplace=True), nn.Tanh(), last
        self.unused, self.head = nn.Linear(2, 2), nn.Linear(4, 3)
        self.gru = nn.GRU(4, 4, batch_first=True)

    def features(self, x: Tensor) -> Tensor:
        x = self.twice(self.second(self.twice(self.act(self.first(x)))))
        x = self.third(x)
        x = torch.relu(x) if self.last is None else self.last(x)
        self.gru(x[:, None])
        return x[..., None].flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def modules(last: nn.Module | None) -> Modules:
    module, x = Own(last).eval(), torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    return Modules.of(module, lambda: module(x), lambda: module.features(x), (8,))


def test_layers_of_a_users_model_are_found_by_name() -> None:
    found = modules(nn.GELU())
    assert found.tap(Place()) is None
    before = found.tap(Place(None, "before"))
    assert before is not None
    assert (before.layer, before.before, before.as_features) == ("last", True, True)
    tap = found.tap(Place("act", "before"))
    assert tap is not None
    assert (tap.layer, tap.before) == ("act", True)
    assert found.tap(Place("first")) is not None


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (Place(None, "before"), r"expected features that are the output of an activation .*, got other features; set"),
        (Place(1), r"expected the name of a module of the model, such as 'first', 'second', 'third', got 1"),
        (Place("frist"), r"unknown module 'frist'; did you mean 'first'"),
        (Place("twice"), r"outputs one tensor \(B, ...\), got 'twice': it is called 2 times"),
        (Place("unused"), r"got 'unused': it is not called"),
        (Place("gru"), r"got 'gru': its output has type tuple"),
        (Place("first", "before"), r"expected an activation module, such as nn.ReLU, got 'first'; set 'layer' to"),
    ],
)
def test_layers_that_cannot_be_read_in_a_users_model_are_refused(place: Place, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        modules(None).tap(place)


MINE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(784, 6), nn.ReLU(inplace=True), nn.Linear(6, outputs)

    def forward(self, x):
        return self.head(self.act(self.fc(x.flatten(1))))
"""
TEXT = """
name: made
seeds: 1
optimizers: {{sgd: {{target: sgd, lr: 0.1}}}}
experiments:
  e:
    tasks: {{kind: permuted, count: 1}}
    models: {{a: {model}}}
    protocol: {{max_epochs: 1, train_examples: 128, validation_examples: 60, test_examples: 80}}
    metrics: [{{kind: stable_rank, {setting}}}]
"""
YOURS = "{kind: './mine.py:Net'}"


@pytest.mark.parametrize(
    ("model", "setting", "said"),
    [
        (
            "{kind: mlp, hidden: [6, 5]}",
            "layer: 3",
            "layer=3: models.a: expected a hidden layer from 1 to 2",
        ),
        ("{kind: mlp, hidden: []}", "activation: before", "expected a hidden layer, but the network has none"),
        ("{kind: mlp}", "layer: fc", "models.a: expected hidden layer 1, got 'fc'"),
        ("{kind: mlp}", "layer: 0", "layer: expected the number of a hidden layer (the first is 1), or the name"),
        ("{kind: mlp}", "activation: befor", "activation: unknown choice 'befor'; did you mean 'before'?"),
        ("{kind: mlp}", "layers: 1", "unknown key 'layers'; did you mean 'layer'?"),
        (YOURS, "layer: fcc", "stable_rank layer=fcc: models.a: unknown module 'fcc'; did you mean 'fc'?"),
        (YOURS, "{layer: fc, activation: before}", "expected an activation module, such as nn.ReLU, got 'fc'"),
    ],
)
@pytest.mark.usefixtures("_train_here")
def test_wrong_layers_are_refused_before_training(
    model: str, setting: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    file = tmp_path / "made.yaml"
    file.write_text(TEXT.format(model=model, setting=setting.strip("{}")), encoding="utf-8")
    assert said in refusal(capsys, tmp_path, "run", file, "--runs-dir", tmp_path / "runs", "--quiet")


def test_inputs_of_an_in_place_activation_are_read_before_it() -> None:
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    found = Modules.of(module, lambda: module(x), lambda: module[1](module[0](x)), (40,))
    taps = [tap for place in (Place("0"), Place("1"), Place(None, "before")) if (tap := found.tap(place)) is not None]
    with torch.no_grad(), tapped(module, taps) as caught:
        module(x)
    before = module[0](x).detach()
    for tap, expected in zip(taps, (before, before.relu(), before), strict=True):
        assert torch.equal(tap.rows(caught[tap], 1), expected)
        assert rank.spectrum(caught[tap]).examples == 40


def test_names_follow_the_settings() -> None:
    for place in (*PLACES, Place("encoder.2", "before")):
        made = MetricSettings.of("srank", **{name: v for name, v in place.settings.items() if v is not None})
        assert made.name == f"srank {place.name}".rstrip()
    assert MetricSettings.of("stable_rank", layer=1.0).settings == {"layer": 1}
