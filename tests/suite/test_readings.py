"""Claims over readings in a suite: their meaning, the metrics they add, and errors with their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from optbench.cli import main
from optbench.suite import Suite, dump_suite, load_suite, suite_differences, suite_hash
from optbench.suite.measured import unlisted, with_readings
from tests.refusals import refusal

SUITE = """\
name: read
seeds: 2
optimizers: {{a: {{target: sgd}}, b: {{target: adam}}}}
experiments:
  one:
    tasks: {{kind: permuted, count: 2}}
    models: {{m: {{kind: mlp, hidden: [8]}}}}
    metrics: {listed}
claims:
  c:
    experiment: one
    left: a
    right: b
    expect: lower
    {subject}
"""
METRICS = "metrics: [effective_rank, {kind: srank, delta: 0.05}, pca99]"
PRIMARY = "primary: {metric: effective_rank, data: last}"


def text(readings: str, listed: str = "[hoyer]", before: str = "") -> str:
    return SUITE.format(listed=listed, subject=f"{before}readings: {{{readings}}}")


def loaded(folder: Path, content: str, name: str = "read") -> Suite:
    path = folder / f"{name}.yaml"
    path.write_text(content, encoding="utf-8")
    return load_suite(path)


def names(suite: Suite) -> list[str]:
    return [entry.name for entry in with_readings(suite).experiments["one"].metrics or ()]


def test_readings_are_every_metric_in_every_layer_on_all_data(tmp_path: Path) -> None:
    layers = "layers: [{}, {delta: 0.1}, {delta: 0.2}]"
    suite = loaded(
        tmp_path,
        text(f"metrics: [srank], {layers}, data: [pooled, last], primary: {{metric: srank, layer: {{delta: 0.2}}}}"),
    )
    claim = suite.claims["c"]
    assert claim.readings is not None
    assert [(cell.metric, cell.layer, cell.data, cell.name) for cell in claim.readings.cells] == [
        ("srank", layer, data, name)
        for layer, name in (("", "srank"), ("delta 0.1", "srank delta=0.1"), ("delta 0.2", "srank delta=0.2"))
        for data in ("pooled", "last")
    ]
    assert claim.primary == claim.readings.cells[4]
    assert names(suite) == ["hoyer", "srank", "srank delta=0.1", "srank delta=0.2"]


def test_an_explicit_default_is_the_same_reading(tmp_path: Path) -> None:
    same = "metrics: [srank], layers: [{delta: 0.01}, {delta: 0.1}], primary: {metric: srank, layer: {}}"
    claim = loaded(tmp_path, text(same)).claims["c"]
    assert (claim.primary.name, claim.primary.layer) == ("srank", "delta 0.01")


@pytest.mark.parametrize(
    ("listed", "added"),
    [
        ("[hoyer]", ["effective_rank", "srank delta=0.05", "pca99", "srank"]),
        ("null", ["srank delta=0.05", "pca99", "srank"]),
        ("[default, pca99]", ["srank delta=0.05", "srank"]),
        ("[effective_rank, {kind: srank, delta: 0.05}, srank, pca99]", []),
    ],
)
def test_only_metrics_that_are_not_already_measured_are_added(listed: str, added: list[str], tmp_path: Path) -> None:
    metrics = "metrics: [effective_rank, forgetting, {kind: srank, delta: 0.05}, pca99, srank, steps]"
    suite = loaded(tmp_path, text(f"{metrics}, primary: {{metric: pca99}}", listed))
    assert [entry.name for entry in unlisted(suite, "one")] == added
    if not added:
        assert with_readings(suite) is suite


def test_readings_survive_a_round_trip_and_count_as_listed(tmp_path: Path) -> None:
    suite = loaded(tmp_path, text(f"{METRICS}, data: [pooled, last], {PRIMARY}"))
    written = tmp_path / "written.yaml"
    written.write_text(dump_suite(suite), encoding="utf-8")
    assert load_suite(written) == suite
    as_written = load_suite(written, as_written=True)
    assert as_written.claims["c"].readings.cells == suite.claims["c"].readings.cells  # type: ignore[union-attr]
    assert as_written.claims["c"].primary == suite.claims["c"].primary
    assert suite_hash(as_written) == suite_hash(suite)
    listed = "[hoyer, effective_rank, {kind: srank, delta: 0.05}, pca99]"
    plain = SUITE.format(listed=listed, subject="metric: effective_rank")
    assert suite_hash(loaded(tmp_path, plain, "plain")) == suite_hash(suite)
    less = loaded(tmp_path, SUITE.format(listed="[hoyer]", subject="metric: hoyer"), "less")
    assert suite_hash(less) != suite_hash(suite)
    assert suite_differences(less, suite)[0].startswith("experiments.one.metrics")


def test_an_extending_suite_can_replace_a_metric_by_readings_and_back(tmp_path: Path) -> None:
    loaded(tmp_path, SUITE.format(listed="null", subject="metric: effective_rank"), "base")
    inside = f"metric: null, readings: {{{METRICS}, data: [last], {PRIMARY}}}"
    over = loaded(tmp_path, f"extends: ./base.yaml\nclaims: {{c: {{{inside}}}}}\n", "over")
    assert over.claims["c"].primary.data == "last"
    back = loaded(tmp_path, "extends: ./over.yaml\nclaims: {c: {metric: hoyer, readings: null}}\n", "back")
    assert back.claims["c"].primary.name == "hoyer"
    assert list(unlisted(back, "one")) == []


def test_the_dry_run_counts_the_readings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded(tmp_path, text(f"{METRICS}, data: [pooled, last], {PRIMARY}"))
    assert main(["run", str(tmp_path / "read.yaml"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert (
        "\nReadings of claims\n  c: 6 readings: 3 metrics × 2 data; the verdict is on effective_rank, last\n" in shown
    )


@pytest.mark.parametrize(
    ("readings", "at", "said"),
    [
        (f"{METRICS}, primary: {{metric: pca99, data: last}}", "last}", ".primary.data: expected one of the data"),
        (f"{METRICS}, data: [last], primary: {{metric: pca99, data: first}}", "first", "unknown choice 'first'"),
        (f"{METRICS}, data: [pooled, latest], {PRIMARY}", "latest", "data.1: unknown choice 'latest'; did you mean"),
        (f"{METRICS}, primary: {{metric: srank}}", "srank}", "primary.metric: expected one of the metrics of these"),
        (f"{METRICS}, primary: {{metric: pca9}}", "pca9}", "unknown metric 'pca9'; did you mean 'pca99'?"),
        (
            "metrics: [srank], layers: [{delta: 0.1}], primary: {metric: srank}",
            "{metric: srank}",
            "primary.layer: expected one of the layers of these readings ({delta: 0.1}), got {}",
        ),
        (
            "metrics: [pca9], primary: {metric: pca99}",
            "pca9]",
            "metrics.0: unknown metric 'pca9'; did you mean 'pca99'",
        ),
        ("metrics: [default], primary: {metric: pca99}", "default]", "metrics.0: expected metrics by name"),
        ("metrics: [linear_cka], primary: {metric: linear_cka}", "linear_cka]", "compares two solutions"),
        (
            "metrics: [hoyer], data: [last], primary: {metric: hoyer, data: last}",
            "last]",
            "readings.data: 'last': expected metrics measured on each task's test data, got hoyer",
        ),
        ("metrics: [pca99, pca99], primary: {metric: pca99}", "[pca99, pca99]", "'pca99' is listed twice"),
        (
            "metrics: [pca99], layers: [{}, {dela: 1}], primary: {metric: pca99}",
            "{dela",
            "readings.layers.1: pca99: unknown setting 'dela'",
        ),
        (
            "metrics: [srank], layers: [{}, {delta: 5}], primary: {metric: srank}",
            "{delta",
            "readings.layers.1: srank: delta: expected less than 1, got 5",
        ),
        (
            "metrics: [{kind: srank, delta: 0.1}], layers: [{delta: 0.2}], primary: {metric: srank}",
            "delta: 0.2",
            "'delta': srank delta=0.1 already has a 'delta'",
        ),
        (
            "metrics: [srank], layers: [{}, {delta: 0.01}], primary: {metric: srank}",
            "layers",
            "'layers': two readings are the same: srank",
        ),
        (f"{METRICS}", "{metrics", "expected the key 'primary'"),
        (f"metric: [srank], {PRIMARY}", "metric:", "unknown key 'metric'; did you mean 'metrics'?"),
    ],
)
def test_invalid_readings_are_refused_with_their_place(
    readings: str, at: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text(readings), encoding="utf-8")
    message = refusal(capsys, tmp_path, "run", path, "--dry-run")
    column = len("    readings: ") + f"{{{readings}}}".index(at) + 1
    if "primary.layer" in said:
        column = len("    readings: {") + readings.index(at) + 1
    assert message.startswith(f"{path}:15:{column}: claims.c.readings"), message
    assert said in message


@pytest.mark.parametrize(
    ("subject", "place", "said"),
    [
        (
            f"metric: hoyer\n    readings: {{{METRICS}, {PRIMARY.replace('last', 'pooled')}}}",
            "16:5",
            "claims.c: 'readings': expected either 'readings' or 'metric', got both",
        ),
        ("beside: [hoyer]", "11:5", "claims.c: expected the key 'metric' or 'readings'"),
    ],
)
def test_a_claim_has_either_a_metric_or_readings(
    subject: str, place: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SUITE.format(listed="[hoyer]", subject=subject), encoding="utf-8")
    message = refusal(capsys, tmp_path, "run", path, "--dry-run")
    assert message.startswith(f"{path}:{place}: "), message
    assert said in message


def test_the_documented_claim_is_valid(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "readings.md").read_text(encoding="utf-8")
    suite = loaded(tmp_path, text.split("```yaml\n")[1].split("```")[0], "documented")
    claim = suite.claims["shampoo-has-a-lower-rank"]
    assert claim.readings is not None
    assert len(claim.readings.cells) == 24
    assert (claim.primary.name, claim.primary.layer, claim.primary.data) == ("effective_rank", "", "pooled")
    assert {cell.name for cell in claim.readings.cells if cell.layer} == {
        *("effective_rank activation=before", "effective_rank_sv activation=before", "stable_rank activation=before"),
        *("participation_ratio activation=before", "pca99_centred activation=before"),
        "srank delta=0.05,activation=before",
    }
