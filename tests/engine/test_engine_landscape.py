"""Loss-landscape metrics of a run agree with plain PyTorch at the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from optbench.cli import main
from optbench.data import Dataset, InputSpec
from optbench.engine import TrialResult
from optbench.engine.batches import Normaliser
from optbench.engine.blueprint import Blueprint
from optbench.engine.evaluate import Evaluator
from optbench.engine.landscape import Landscape, flat, training_loss
from optbench.engine.stack import Layout
from optbench.metrics import DEFAULT_METRICS, METRICS, select, take
from optbench.models import build, initialise
from optbench.store.tables import MetricRow
from optbench.streams import generator
from optbench.suite import Suite, dump_suite
from optbench.suite.schema import ModelSettings
from optbench.tasks import Examples, TaskFamily
from tests.conftest import small_suite, train_suite

LANDSCAPE = [name for name, metric in METRICS.items() if metric.kind == "landscape"]
DISTANCES = ["distance_from_init", "relative_distance_from_init"]
DEAR = [name for name in LANDSCAPE if name not in DISTANCES]
Found = TypeVar("Found")


def suite_with(names: list[str] | None, *, lr: float = 0.1, seeds: int = 1) -> Suite:
    """Return a small suite with these metrics; tanh makes the loss smooth, so that Hessians can be compared."""
    return small_suite(
        {"sgd": {"target": "sgd", "lr": lr}},
        model={"kind": "mlp", "hidden": [6], "activation": "tanh"},
        seeds=seeds,
        metrics=names,
        train_examples=1200,
        max_epochs=1,
    )


def landscape_rows(result: TrialResult) -> list[MetricRow]:
    return [row for row in result.rows if isinstance(row, MetricRow) and row.metric in LANDSCAPE]


class Plain:
    """The network of a checkpoint as an ordinary float64 module, on the first 1,000 examples of the last task."""

    def __init__(self, suite: Suite, dataset: Dataset, weights: dict[str, Tensor], seed: int) -> None:
        experiment = suite.experiments["small"]
        family = TaskFamily(experiment.tasks, dataset, experiment.protocol, suite.seed, torch.device("cpu"))
        examples = family.sequence(seed).train(family.count - 1)
        self.inputs = (examples.inputs[:1000].double() / 255 - dataset.mean[0]) / dataset.std[0]
        self.labels = examples.targets[:1000]
        network = build(experiment.models["net"], family.inputs, family.classes)
        self.start = initialise(network, generator(suite.seed, seed, "initial weights"))
        self.network = network.to_empty(device="cpu").double()
        self.network.load_state_dict(weights)
        self.parameters = list(self.network.parameters())

    def loss(self) -> Tensor:
        return nn.functional.cross_entropy(self.network(self.inputs), self.labels)

    def gradient(self) -> list[Tensor]:
        return list(torch.autograd.grad(self.loss(), self.parameters))

    def times_hessian(self, vector: Tensor) -> Tensor:
        """Return Hv by a central difference of gradients, without second derivatives."""
        step = 1e-4 / float(vector.norm())
        parts = torch.split(vector, [p.numel() for p in self.parameters])
        found = []
        for sign in (1, -1):
            moved = [sign * step * part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]
            found.append(torch.cat([g.flatten() for g in self.at(moved, self.gradient)]))
        return (found[0] - found[1]) / (2 * step)

    def rise(self, moved: list[Tensor]) -> float:
        return self.at(moved, lambda: self.loss().item()) - self.loss().item()

    def at(self, moved: list[Tensor], call: Callable[[], Found]) -> Found:
        before = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for p, by in zip(self.parameters, moved, strict=True):
                p += by
        found = call()
        with torch.no_grad():
            for p, was in zip(self.parameters, before, strict=True):
                p.copy_(was)
        return found


def test_a_run_agrees_with_plain_pytorch_at_its_checkpoint(tmp_path: Path, mnist: Dataset) -> None:
    suite = suite_with(LANDSCAPE)
    (tmp_path / "suite.yaml").write_text(dump_suite(suite), encoding="utf-8")
    command = ["run", str(tmp_path / "suite.yaml"), "--runs-dir", str(tmp_path), "--name", "it", "--jobs", "1"]
    assert main([*command, "--quiet"]) == 0
    trial = pd.read_parquet(tmp_path / "it" / "trials.parquet").iloc[0]
    table = pd.read_parquet(tmp_path / "it" / "metrics.parquet")
    rows = table[table["metric"].isin(LANDSCAPE)]
    assert sorted(rows["metric"]) == sorted(LANDSCAPE)
    assert set(rows["after_task"]) == set(rows["task"]) == {2}
    assert rows["layer"].isna().all()
    assert rows["note"].isna().all()
    value = dict(zip(rows["metric"], rows["value"], strict=True))

    weights = load_file(tmp_path / "it" / trial["checkpoint"])
    plain = Plain(suite, mnist, weights, int(trial["seed"]))
    moved = torch.cat([(weights[name].double() - start.double()).flatten() for name, start in plain.start.items()])
    size = torch.cat([start.double().flatten() for start in plain.start.values()]).norm()
    assert value["distance_from_init"] == pytest.approx(float(moved.norm()), rel=1e-13)
    assert value["relative_distance_from_init"] == pytest.approx(float(moved.norm() / size), rel=1e-13)

    # The run normalises its inputs in float32, as in training, and this reference in float64.
    assert value["landscape_loss"] == pytest.approx(plain.loss().item(), rel=1e-6)
    g = plain.gradient()
    length = math.sqrt(sum(float(part.square().sum()) for part in g))
    assert value["sam_sharpness"] == pytest.approx(plain.rise([0.05 * part / length for part in g]), rel=1e-5)
    w = [p.detach() for p in plain.parameters]
    length = math.sqrt(sum(float((a * b).square().sum()) for a, b in zip(w, g, strict=True)))
    step = [0.5 * a.square() * b / length for a, b in zip(w, g, strict=True)]
    assert value["adaptive_sam_sharpness"] == pytest.approx(plain.rise(step), rel=1e-5)

    count = sum(p.numel() for p in w)
    product = LinearOperator(
        (count, count), lambda v: plain.times_hessian(torch.from_numpy(v.reshape(-1))).numpy(), dtype=np.float64
    )
    top = eigsh(product, k=1, which="LA", tol=1e-6, v0=np.ones(count), return_eigenvectors=False)[0]
    assert value["hessian_top_eigenvalue"] == pytest.approx(top, rel=1e-5)
    assert 0 < value["hessian_top_residual"] <= 1e-4
    noise = generator(suite.seed, int(trial["seed"]), "landscape")
    signs = [torch.randint(0, 2, (count,), generator=noise).double() * 2 - 1 for _ in range(32)]
    samples = [float(v @ plain.times_hessian(v)) for v in signs]
    assert value["hessian_trace"] == pytest.approx(np.mean(samples), rel=1e-5)
    assert value["hessian_trace_error"] == pytest.approx(np.std(samples, ddof=1) / math.sqrt(32), rel=1e-4)


def test_the_landscape_of_a_trial_alone_equals_that_in_a_cohort(mnist: Dataset) -> None:
    suite = suite_with(LANDSCAPE, seeds=3)
    together = [landscape_rows(result) for result in train_suite(suite, mnist)]
    assert landscape_rows(train_suite(suite, mnist, only=1)[0]) == together[1]
    for name in LANDSCAPE:
        values = {row.value for rows in together for row in rows if row.metric == name}
        assert len(values) == 3, "seeds have different landscapes"


def test_by_default_only_distances_are_measured_at_the_end(mnist: Dataset) -> None:
    assert [name for name in DEFAULT_METRICS if name in LANDSCAPE] == DISTANCES
    assert all(METRICS[name].cost == ("cheap" if name in DISTANCES else "expensive") for name in LANDSCAPE)
    assert all(METRICS[name].direction == "neutral" for name in LANDSCAPE)
    (result,) = train_suite(suite_with(None), mnist)
    assert [(row.metric, row.after_task, row.task) for row in landscape_rows(result)] == [(n, 2, 2) for n in DISTANCES]
    (result,) = train_suite(suite_with([]), mnist)
    assert landscape_rows(result) == []


def test_a_diverged_trial_has_no_landscape(mnist: Dataset) -> None:
    (result,) = train_suite(suite_with(LANDSCAPE, lr=1e38), mnist)
    assert result.weights is None
    assert landscape_rows(result) == []


def network_and_loss(model: ModelSettings) -> tuple[Layout, Tensor, Callable[[Tensor], Tensor], Callable[[], Tensor]]:
    """Return the layout and weights of a network, and its loss on random images as measured and by a plain module."""
    noise = torch.Generator().manual_seed(0)
    shape = (3, 8, 8)
    network = build(model, InputSpec(shape), 5)
    layout = Layout.of({name: parameter.shape for name, parameter in network.named_parameters()})
    weights = initialise(network, noise)
    images = torch.randint(0, 256, (1100, *shape), generator=noise, dtype=torch.uint8)
    labels = torch.randint(0, 5, (1100,), generator=noise)
    scale, shift = torch.tensor([0.01, 0.02, 0.03]).view(3, 1, 1), torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1)
    evaluator = Evaluator(Blueprint.of_ours(network), Normaliser(scale, shift, None))
    loss = training_loss(evaluator, Examples(images, labels), layout.pack(weights))
    module = build(model, InputSpec(shape), 5).to_empty(device="cpu").double()
    module.load_state_dict(weights)

    def plain() -> Tensor:
        return nn.functional.cross_entropy(module((images * scale + shift)[:1000].double()), labels[:1000])

    return layout, layout.pack(weights), loss, plain


def test_a_convolutional_network_is_measured_on_the_first_thousand_examples() -> None:
    layout, row, loss, plain = network_and_loss(ModelSettings.of("cnn", channels=[3, 5], hidden=7))
    weights = flat(layout, row)
    assert weights.dtype == torch.float64
    assert weights.numel() == layout.parameters < layout.width, "without padding the test would be weaker"
    assert loss(weights).item() == pytest.approx(plain().item(), rel=1e-12)
    found = {m.metric: m for m in take(select(DEAR), Landscape(weights, weights, lambda: loss, torch.Generator))}
    assert found.keys() == set(DEAR)
    assert all(m.value is not None and m.note is None for m in found.values())
    assert found["landscape_loss"].value == pytest.approx(plain().item(), rel=1e-12)


def parabola(w: Tensor) -> Tensor:
    return (torch.arange(1, len(w) + 1, dtype=w.dtype) * w.square()).sum() + w.prod()


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ("landscape_loss", {"landscape_loss"}),
        ("sam_sharpness", {"landscape_loss", "sam_sharpness"}),
        ("hessian_top_eigenvalue", {"landscape_loss", "hessian_top_eigenvalue", "hessian_top_residual"}),
        ("hessian_trace", {"landscape_loss", "hessian_trace", "hessian_trace_error"}),
        ("hessian_trace_error", {"landscape_loss", "hessian_trace_error"}),
        ("distance_from_init", {"distance_from_init"}),
        ("hoyer", set()),
    ],
)
def test_related_metrics_are_added_and_values_do_not_depend_on_other_requests(asked: str, taken: set[str]) -> None:
    weights, start = torch.tensor([1.0, 2, 3]).double(), torch.ones(3).double()
    everything = {m.metric: m for m in take(select(LANDSCAPE), Landscape(weights, start, lambda: parabola, draws))}
    assert everything.keys() == set(LANDSCAPE)
    found = {m.metric: m for m in take(select([asked]), Landscape(weights, start, lambda: parabola, draws))}
    assert found == {name: everything[name] for name in taken}


def test_the_loss_is_not_created_if_no_metric_needs_it() -> None:
    def never() -> Callable[[Tensor], Tensor]:
        raise AssertionError("no loss was requested")

    weights = torch.ones(3).double()
    found = take(select(["hoyer", *DISTANCES]), Landscape(weights, weights / 2, never, draws))
    assert [(m.metric, m.value) for m in found] == [
        ("distance_from_init", pytest.approx(math.sqrt(3) / 2)),
        ("relative_distance_from_init", pytest.approx(1.0)),
    ]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_non_finite_network_gives_null_values_with_notes(wrong: float) -> None:
    weights = torch.tensor([1.0, wrong]).double()
    found = take(select(LANDSCAPE), Landscape(weights, torch.ones(2).double(), lambda: parabola, draws))
    assert {m.metric for m in found} == set(LANDSCAPE)
    assert all(m.value is None and m.note for m in found)


def test_landscape_metrics_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "metrics"]) == 0
    shown = capsys.readouterr().out.split()
    assert set(LANDSCAPE) <= set(shown)
