"""Pruning curves of a run: recomputed from checkpoints, and shown in every report."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from optbench.cli import main
from optbench.data import Dataset
from optbench.metrics.pruning import KEEP
from optbench.report.figures.series import groups
from optbench.report.figures.weight_magnitudes import EDGES, magnitudes
from optbench.stats.arms import arms
from optbench.stats.results import Results, read_results
from optbench.store import read_run
from optbench.tasks.examples import split_dataset
from tests.conftest import FORMATS, report, run_file
from tests.reports import figures

SUITE = """
name: pruned
seeds: 1
optimizers:
  sgd: {target: sgd, lr: 0.1}
  adam: {target: adam, lr: 1.0e-3}
  wild: {target: sgd, lr: 1.0e+9}
experiments:
  halves:
    tasks: {kind: class-incremental, group_size: 5}
    models: {net: {kind: mlp, hidden: [12, 10], normalisation: layer}}
    protocol: {batch_size: 32, max_epochs: 1, early_stopping: null, train_examples: 1600, test_examples: 1000,
               validation_examples: 100}
    metrics: [effective_rank, holding_sparsity_global]
claims:
  kept: {experiment: halves, metric: pruned_accuracy_0.1_layer, left: sgd, right: adam, expect: higher}
"""
GOOD = ("sgd", "adam")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_file(tmp_path_factory.mktemp("pruned"), SUITE)


@pytest.fixture(scope="module")
def curves(path: Path) -> dict[tuple[str, str], dict[float, float]]:
    """Map (optimizer, scope) and the fraction kept to the accuracy."""
    table = pd.read_parquet(path / "pruning.parquet")
    return {
        (str(optimizer), str(scope)): dict(zip(rows.keep, rows.accuracy, strict=True))
        for (optimizer, scope), rows in table.groupby(["optimizer", "scope"])
    }


@pytest.fixture
def results(path: Path) -> Results:
    return read_results(read_run(path))


def test_every_fraction_of_both_scopes_is_measured_after_the_last_task(
    path: Path, curves: dict[tuple[str, str], dict[float, float]]
) -> None:
    table = pd.read_parquet(path / "pruning.parquet")
    assert (table.after_task == 2).all()
    assert not table.duplicated(["trial", "scope", "keep"]).any()
    # Diverged networks are not pruned.
    assert set(curves) == {(optimizer, scope) for optimizer in GOOD for scope in ("global", "layer")}
    assert all(list(curve) == list(KEEP) for curve in curves.values())
    assert table.accuracy.between(0, 1).all()


def test_with_all_weights_it_is_the_pooled_accuracy_of_all_tasks(
    path: Path, curves: dict[tuple[str, str], dict[float, float]]
) -> None:
    table = pd.read_parquet(path / "accuracy.parquet")
    last = table[table.after_task == 2]
    for (optimizer, _), curve in curves.items():
        rows = last[last.optimizer == optimizer]
        assert rows.examples.nunique() == 2, "tasks must differ in size for pooling to matter"
        pooled = (rows.accuracy * rows.examples).sum() / rows.examples.sum()
        assert curve[1.0] == pytest.approx(pooled, abs=1e-12)


def test_every_row_can_be_recomputed_in_plain_torch(
    path: Path, curves: dict[tuple[str, str], dict[float, float]], results: Results, mnist: Dataset
) -> None:
    suite = results.suite
    test = split_dataset(mnist, suite.experiments["halves"].protocol, suite.seed, torch.device("cpu")).test
    inputs, labels = (test.inputs.flatten(1).float() / 255 - 0.1307) / 0.3081, test.targets
    for (optimizer, scope), curve in curves.items():
        weights = load_file(path / "checkpoints" / checkpoint(path, optimizer))
        matrices = {name: weight for name, weight in weights.items() if weight.ndim == 2}
        assert set(matrices) == {"layers.0.weight", "layers.1.weight", "head.weight"}
        for keep, accuracy in curve.items():
            if scope == "global":
                flat = torch.cat([weight.flatten() for weight in matrices.values()])
                pieces = largest(flat, keep).split([weight.numel() for weight in matrices.values()])
            else:
                shares = [min(1.0, 2 * keep) if name == "head.weight" else keep for name in matrices]
                pieces = tuple(largest(w.flatten(), s) for w, s in zip(matrices.values(), shares, strict=True))
            pruned = {
                name: piece.view(weight.shape) for (name, weight), piece in zip(matrices.items(), pieces, strict=True)
            }
            right = (forward({**weights, **pruned}, inputs).argmax(1) == labels).sum().item()
            # Another order of summation may break a tie between two classes differently.
            assert right == pytest.approx(accuracy * len(labels), abs=1), (optimizer, scope, keep)


def largest(flat: torch.Tensor, share: float) -> torch.Tensor:
    """Set all but the ⌈share·n⌉ largest to zero."""
    order = np.argsort(-flat.abs().numpy(), kind="stable")
    kept = torch.zeros_like(flat)
    stay = torch.from_numpy(order[: math.ceil(share * len(flat) - 1e-9)])
    kept[stay] = flat[stay]
    return kept


def forward(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for i in range(2):
        x = x @ weights[f"layers.{i}.weight"].T + weights[f"layers.{i}.bias"]
        x = torch.nn.functional.layer_norm(
            x, x.shape[1:], weights[f"norms.{i}.weight"], weights[f"norms.{i}.bias"]
        ).relu()
    return x @ weights["head.weight"].T + weights["head.bias"]


def checkpoint(path: Path, optimizer: str) -> str:
    table = pd.read_parquet(path / "trials.parquet")
    return Path(str(table[table.optimizer == optimizer].checkpoint.item())).name


def test_measures_are_derived_from_curves_when_a_run_is_read(
    path: Path, curves: dict[tuple[str, str], dict[float, float]], results: Results
) -> None:
    assert not pd.read_parquet(path / "metrics.parquet").metric.str.startswith(("prun", "hold")).any()
    for arm in arms(results):
        for scope in ("global", "layer"):
            if arm.optimizer == "wild":
                assert not arm.took(f"pruning_area_{scope}")
                continue
            keep, accuracy = (np.array(list(side)) for side in zip(*curves[arm.optimizer, scope].items(), strict=True))
            for share in (1.0, 0.1, 0.05, 0.02):
                expected = np.interp(math.log(share), np.log(keep), accuracy)
                assert arm.value(f"pruned_accuracy_{share:g}_{scope}", 0) == pytest.approx(expected, abs=1e-9)
            area = ((accuracy[1:] + accuracy[:-1]) / 2 * np.diff(keep)).sum()
            assert arm.value(f"pruning_area_{scope}", 0) == pytest.approx(area)
            holding = 1 - keep[np.flatnonzero(accuracy < 0.99 * accuracy[-1]).max() + 1]
            assert arm.value(f"holding_sparsity_{scope}", 0) == pytest.approx(holding)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_shows_pruning(
    path: Path,
    form: str,
    curves: dict[tuple[str, str], dict[float, float]],
    results: Results,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = report(path, form, capsys)
    values = results.values
    if form in ("csv", "json"):
        records: list[dict[str, Any]] = json.loads(text)["results"] if form == "json" else read_csv(text)
        for optimizer in GOOD:
            trial = next(trial.id for trial in results.trials if trial.optimizer == optimizer)
            for metric in ("pruned_accuracy_0.05_layer", "holding_sparsity_global", "pruning_area_layer"):
                found = [r for r in records if (r["optimizer"], r["metric"]) == (optimizer, metric)]
                assert [float(r["mean"]) for r in found] == [pytest.approx(values[metric][trial])]
                assert found[0]["direction"] == "higher"
        return
    assert "accuracy with only the largest weights kept" in text
    for optimizer in GOOD:
        for scope, words in (("global", "of all"), ("layer", "by layer")):
            shown = [f"{curves[optimizer, scope][1.0]:.3f}"]
            trial = next(trial.id for trial in results.trials if trial.optimizer == optimizer)
            shown += [f"{values[f'pruned_accuracy_{share}_{scope}'][trial]:.3f}" for share in ("0.1", "0.05")]
            if form == "html":
                assert all(f">{value}<" in text for value in (words, *shown))
            else:
                lines = [line for line in text.splitlines() if optimizer in line and words in line]
                assert any(all(value in line for value in shown) for line in lines), (optimizer, scope, shown)
    if form == "html":
        assert "halves, net: pruning" in text
        assert "halves, net: weight magnitudes" in text


def read_csv(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_claim_can_be_about_a_point_of_the_curve(
    path: Path, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = json.loads(report(path, "json", capsys))["claims"][0]
    part = claim["parts"][0]
    expected = [
        results.values["pruned_accuracy_0.1_layer"][trial.id] for trial in results.trials if trial.optimizer in GOOD
    ]
    assert [part["median_a"], part["median_b"]] == pytest.approx(expected)
    assert claim["verdict"] == "not comparable", "there is only one seed"


def test_pruning_metrics_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "metrics"]) == 0
    words = capsys.readouterr().out.split()
    for scope in ("global", "layer"):
        for name in ("pruning_area", "holding_sparsity", "pruned_accuracy_0.1", "pruned_accuracy_0.05"):
            assert f"{name}_{scope}" in words


def test_magnitudes_agree_with_the_checkpoint(path: Path, results: Results) -> None:
    drawn = {figure.name: figure for figure in figures([results])}
    assert len(drawn["weight-magnitudes_halves_net"].panels) == 1
    assert "1 seed." in drawn["weight-magnitudes_halves_net"].caption
    series = {one.arm.optimizer: one for one in groups([results])[0].series}
    assert magnitudes(series["wild"]) is None
    for optimizer in GOOD:
        found = magnitudes(series[optimizer])
        assert found is not None
        weights = load_file(path / "checkpoints" / checkpoint(path, optimizer))
        sizes = np.concatenate([w.double().abs().flatten().numpy() for w in weights.values() if w.ndim == 2])
        assert found.median == np.median(sizes)
        assert found.density.sum() * (EDGES[1] - EDGES[0]) == pytest.approx(1 - found.nothing)
        for edge in (-3.0, -2.0, -1.0):
            below = found.density[EDGES[1:] <= edge + 1e-9].sum() * (EDGES[1] - EDGES[0]) + found.nothing
            assert below == pytest.approx((sizes < 10**edge).mean(), abs=2 / len(sizes))


def test_missing_checkpoints_are_accepted_and_damaged_ones_refused(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    (copy / "checkpoints" / checkpoint(copy, "sgd")).unlink()
    names = [figure.name for figure in figures([read_results(read_run(copy))])]
    assert "weight-magnitudes_halves_net" in names, "the checkpoint of adam"
    damaged = copy / "checkpoints" / checkpoint(copy, "adam")
    damaged.write_bytes(damaged.read_bytes()[:50])
    capsys.readouterr()
    assert main(["report", str(copy), "--format", "html"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert str(damaged) in said
    assert main(["report", str(copy)]) == 0, "a terminal has no figures"
    shutil.rmtree(copy / "checkpoints")
    names = [figure.name for figure in figures([read_results(read_run(copy))])]
    assert "pruning_halves_net" in names
    assert "weight-magnitudes_halves_net" not in names
