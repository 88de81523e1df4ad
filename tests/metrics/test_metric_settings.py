"""Settings of users' and registered metrics: distinct names, validation, and description in the record."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from optbench.cli import main
from optbench.kinds import AS_WRITTEN
from optbench.metrics.catalog import companions
from optbench.metrics.measuring import Weights, take
from optbench.metrics.own import METRIC_KINDS, MetricSettings, resolve
from optbench.metrics.place import SETTINGS
from tests.metrics.test_user_metrics import final, written
from tests.refusals import refusal

pytestmark = pytest.mark.usefixtures("_train_here")

MINE = """
from enum import StrEnum
import optbench

class Side(StrEnum):
    rows = "rows"
    columns = "columns"

@optbench.metric(of="weights", direction="lower", unit="px")
def size(weights, power: float = 1.0, *, side: Side = Side.rows):
    assert isinstance(side, Side)
    return sum(w.abs().pow(power).sum().item() for w in weights.values()) + (side is Side.columns)

@optbench.metric(of="features")
def needy(features, *, power: int):
    return features.pow(power).mean().item()
"""
METRICS = (
    "[hoyer, ./mine.py:size, {kind: ./mine.py:size, power: 2}, {kind: ./mine.py:size, side: columns, power: 2},"
    " {kind: srank, delta: 0.5}, sam_sharpness, {kind: sam_sharpness, rho: 0.2}]"
)
SQUARED = "size power=2"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, _train_here: None) -> Path:
    folder = tmp_path_factory.mktemp("set")
    suite = written(folder, METRICS, SQUARED, MINE)
    assert main(["run", str(suite), "--runs-dir", str(folder), "--name", "a", "--quiet"]) == 0
    return folder / "a"


def test_every_setting_is_a_separate_metric_with_its_own_name(run: Path) -> None:
    found = set(pd.read_parquet(run / "metrics.parquet").metric)
    assert found == {
        "hoyer",
        "size",
        "size power=2",
        "size power=2,side=columns",
        "srank delta=0.5",
        "features_n",
        "features_d",
        "landscape_loss",
        "sam_sharpness",
        "sam_sharpness rho=0.2",
    }
    pd.testing.assert_series_equal(final(run, "size power=2") + 1, final(run, "size power=2,side=columns"))
    assert (final(run, "size power=2") != final(run, "size")).all()
    assert (final(run, "sam_sharpness rho=0.2") > final(run, "sam_sharpness")).all()


@pytest.mark.parametrize(
    "settings",
    [{"kind": "steps_to_accuracy", "accuracy": 0.7}, {"kind": "sam_sharpness", "rho": 1e-5}, {"kind": "hoyer"}],
)
def test_a_metrics_name_in_reports_is_accepted_in_suites(settings: dict[str, object]) -> None:
    metric = MetricSettings.model_validate(settings)
    assert MetricSettings.model_validate(metric.name) == metric


@pytest.mark.parametrize(
    "settings",
    [
        {"side": "columns"},
        {"powers": [1, 2.5], "name": "a, b=c", "flag": True},
        {"nested": [1], "text": "NaN", "small": 1e-5},
    ],
)
def test_settings_of_every_plain_type_are_read_from_a_name(settings: dict[str, object]) -> None:
    metric = MetricSettings.model_validate({"kind": "./mine.py:size", **settings}, context=AS_WRITTEN)
    read = MetricSettings.model_validate("./mine.py:" + metric.name, context=AS_WRITTEN)
    assert read == metric


def test_a_name_with_incomplete_settings_is_kept_as_it_is() -> None:
    for name in ("size power", "size power=2,", "size power=2,side", "size powers=[1,2"):
        with pytest.raises(ValidationError, match="unknown metric"):
            MetricSettings.model_validate(name)


def test_the_record_has_every_setting_and_reading_needs_no_code(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {entry["name"]: entry for entry in json.loads((run / "run.json").read_text())["metrics"]}
    assert record["size power=2"]["settings"] == {"power": 2.0, "side": "rows"}
    assert record["sam_sharpness rho=0.2"] == {
        "name": "sam_sharpness rho=0.2",
        "target": "sam_sharpness",
        "settings": {"rho": 0.2},
    }
    file = run.parent / "mine.py"
    file.rename(file.with_suffix(".away"))
    try:
        for form in ("terminal", "markdown", "html", "latex", "csv", "json"):
            assert main(["report", str(run), "--format", form, "-o", "-"]) == 0
            shown = " ".join(capsys.readouterr().out.split())
            assert "power=2" in shown.replace(r"\_", "_")
        sides = [f"{run}:adam", f"{run}:sgd", "--format", "json", "--fail-on", f"{SQUARED}:+0.1"]
        main(["compare", *sides])
    finally:
        file.with_suffix(".away").rename(file)
    found = json.loads(capsys.readouterr().out)
    judged = {one["metric"]: one for one in found["results"]}
    assert judged[SQUARED]["primary"]
    assert judged[SQUARED]["direction"] == "lower"
    assert judged["sam_sharpness rho=0.2"]["direction"] == "neutral"
    assert found["gates"][0]["metric"] == SQUARED


def test_the_resolved_suite_repeats_the_run(run: Path, tmp_path: Path) -> None:
    assert main(["run", str(run / "suite.yaml"), "--runs-dir", str(tmp_path), "--name", "b", "--quiet"]) == 0
    for name in (SQUARED, "sam_sharpness rho=0.2"):
        pd.testing.assert_series_equal(final(run, name), final(tmp_path / "b", name), check_exact=True)


def test_an_explicit_default_is_the_same_metric() -> None:
    entry = MetricSettings.of("sam_sharpness", rho=0.05)
    assert (entry.name, entry.model_dump()) == ("sam_sharpness", "sam_sharpness")
    assert entry.in_catalog


def test_companions_have_the_same_settings() -> None:
    top, residual = resolve([MetricSettings.of("hessian_top_eigenvalue", iterations=3)])
    names = [(one.name, dict(one.arguments)) for one in companions(top)]
    assert names == [("landscape_loss", {}), ("hessian_top_residual iterations=3", {"iterations": 3})]
    assert residual in companions(top)
    assert residual.settings == top.settings


def test_a_companion_with_settings_is_recorded_reported_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, error = "hessian_trace probes=4", "hessian_trace_error probes=4"
    suite = written(tmp_path, "[{kind: hessian_trace, probes: 4}]", trace, MINE)
    assert main(["run", str(suite), "--runs-dir", str(tmp_path), "--name", "a", "--quiet"]) == 0
    run = tmp_path / "a"
    assert set(pd.read_parquet(run / "metrics.parquet").metric) == {trace, error, "landscape_loss"}
    record = [(one["name"], one["target"]) for one in json.loads((run / "run.json").read_text())["metrics"]]
    assert record == [(trace, "hessian_trace"), (error, "hessian_trace_error")]
    capsys.readouterr()
    assert main(["report", str(run), "--format", "csv", "-o", "-"]) == 0
    assert error in capsys.readouterr().out
    assert main(["compare", f"{run}:adam", f"{run}:sgd", "--format", "json", "--metric", error]) == 0
    assert [one["metric"] for one in json.loads(capsys.readouterr().out)["results"]] == [error]


def test_settings_are_passed_to_the_function_of_a_registered_metric() -> None:
    weights = Weights({"w": torch.tensor([[0.01, 1.0, 1.0, 2.0]])})
    found = resolve([MetricSettings.of("near_zero_share"), MetricSettings.of("near_zero_share", relative=1.0)])
    measured = {m.metric: m.value for m in take(found, weights) if m.layer is None}
    assert measured == {"near_zero_share": 0.25, "near_zero_share relative=1": 0.75}


@pytest.mark.parametrize("name", [name for name in METRIC_KINDS.names if METRIC_KINDS.names[name]])
def test_every_setting_of_registered_metrics_has_a_type_and_a_default(name: str) -> None:
    for setting, field in METRIC_KINDS.settings(name).model_fields.items():
        assert not field.is_required()
        typed = field.annotation in (int, float) or setting in (*SETTINGS, "corruption")
        assert typed, f"{name}: {setting}"


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (
            "[{kind: ./mine.py:size, pwoer: 2}]",
            "s.yaml:10:38: experiments.e.metrics.0: unknown key 'pwoer'; did you mean 'power'? (valid: power, side)",
        ),
        (
            "[{kind: ./mine.py:size, power: two}]",
            "s.yaml:10:45: experiments.e.metrics.0.power: expected a number, got 'two'",
        ),
        ("[./mine.py:needy]", "s.yaml:10:15: experiments.e.metrics.0: expected the key 'power'"),
        (
            "[{kind: sam_sharpness, rho: -1}]",
            "s.yaml:10:42: experiments.e.metrics.0.rho: expected a number above 0, got -1",
        ),
        ("[{kind: hoyer, p: 1}]", "s.yaml:10:29: experiments.e.metrics.0: unknown key 'p' (valid: none)"),
        ("[{kind: forgetting, p: 1}]", "s.yaml:10:34: experiments.e.metrics.0: unknown key 'p' (valid: none)"),
        ("[{kind: dormant_0.1, tau: 1}]", "s.yaml:10:35: experiments.e.metrics.0: unknown key 'tau' (valid: none)"),
        ("[{power: 1}]", "s.yaml:10:15: experiments.e.metrics.0: expected the key 'kind'"),
        ("[3]", "s.yaml:10:15: experiments.e.metrics.0: expected a name, or a mapping with the key 'kind', got 3"),
        (
            "[{kind: ./mine.py:size, power: 2}, {kind: ./mine.py:size, power: 2.0}]",
            "s.yaml:10:14: experiments.e.metrics: the metric './mine.py:size power=2' is listed twice",
        ),
    ],
)
def test_wrong_settings_are_refused(
    metrics: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = written(tmp_path, metrics, "forgetting", MINE)
    assert said in refusal(capsys, tmp_path, "run", str(suite), "--runs-dir", str(tmp_path / "runs"))


def test_a_claim_about_an_unmeasured_setting_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = written(tmp_path, "[{kind: ./mine.py:size, power: 2}]", "size power=3", MINE)
    said = refusal(capsys, tmp_path, "run", str(suite), "--runs-dir", str(tmp_path / "runs"), lines=2)
    assert "experiments.e.primary: unknown metric 'size power=3'; did you mean 'size power=2'?" in said
    assert "claims.c: unknown metric 'size power=3'; did you mean 'size power=2'?" in said


def test_check_accepts_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    target = f"{tmp_path / 'mine.py'}:size"
    assert main(["check", target]) == 0
    plain = capsys.readouterr().out
    assert main(["check", target, "--set", "power=2"]) == 0
    assert "satisfies the contract" in (squared := capsys.readouterr().out)
    assert squared != plain
    assert main(["check", "near_zero_share", "--set", "relative=0.5"]) == 0
    capsys.readouterr()
    assert main(["check", target, "--set", "pwoer=2"]) == 2
    said = f"optbench: {target}: unknown setting 'pwoer'; did you mean 'power'? (valid: power, side)\n"
    assert capsys.readouterr().err == said
