"""The figure of one metric against another: a line per optimizer along its swept setting, and a point per seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from optbench.errors import SuiteError
from optbench.report.figures.against import against
from optbench.report.figures.style import SEEDS
from optbench.stats.results import Results
from optbench.suite import load_suite
from tests.made_runs import Found, made_run
from tests.reports import on_axes

SUITE = """
name: made
seeds: 3
optimizers:
  sgd: {target: rank-penalty, base: {target: sgd}, strength: [0.03, -0.1, 0.0]}
  adamw: {target: rank-penalty, base: {target: adamw}, strength: [-0.1, 0.0]}
  plain: {target: sgd, lr: 0.1}
  both: {target: sgd, lr: [0.1, 0.2], momentum: [0.0, 0.9]}
experiments:
  permuted:
    tasks: {kind: permuted, count: 3}
    models: {narrow: {kind: mlp, hidden: [10]}}
    optimizers: [sgd, adamw, plain]
    figures: [{x: effective_rank, y: forgetting}]
  decay:
    tasks: {kind: permuted, count: 2}
    models: {narrow: {kind: mlp, hidden: [10]}, wide: {kind: mlp, hidden: [20]}}
    optimizers: [both]
    figures: [{x: effective_rank, y: forgetting}, {x: learning_accuracy, y: effective_rank}]
  early:
    tasks: {kind: permuted, count: 2}
    models: {narrow: {kind: mlp, hidden: [10]}}
    optimizers: [sgd]
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    def status(trial: object) -> str:
        return (
            "diverged" if getattr(trial, "variant", "") == "strength=-0.1" and getattr(trial, "seed", 0) == 1 else "ok"
        )

    return made_run(tmp_path_factory.mktemp("against"), SUITE, Found(status=status))


def test_there_is_a_figure_for_every_request_and_model(results: Results) -> None:
    assert [figure.name for figure in against([results])] == [
        "against__permuted__narrow__forgetting__effective_rank",
        "against__decay__narrow__forgetting__effective_rank",
        "against__decay__narrow__effective_rank__learning_accuracy",
        "against__decay__wide__forgetting__effective_rank",
        "against__decay__wide__effective_rank__learning_accuracy",
    ]


def test_seeds_are_points_and_means_are_joined_along_the_setting(results: Results) -> None:
    figure = against([results])[0]
    (panel,) = figure.panels
    assert [series.label for series in panel.series] == ["sgd", "adamw", "plain"]
    axes = on_axes(panel)
    lines = {
        label: [line for line in axes.lines if line.get_label() == label] for label in (SEEDS, "_means", "_centres")
    }
    texts = [text.get_text() for text in axes.texts]
    values = {
        trial.id: tuple(results.values[metric][trial.id] for metric in ("effective_rank", "forgetting"))
        for trial in results.trials
        if trial.experiment == "permuted" and results.status(trial.id) == "ok"
    }
    points = {(x, y) for line in lines[SEEDS] for x, y in line.get_xydata()}
    assert points == set(values.values())
    assert len(points) == 3 * 6 - 2, "two seeds have diverged"
    assert [len(line.get_xydata()) for line in lines["_means"]] == [3, 2]
    for line, strength in zip(lines["_means"][0].get_xydata(), ("-0.1", "0", "0.03"), strict=True):
        seeds = [value for trial, value in values.items() if f"/sgd/strength={strength}/" in trial]
        assert len(seeds) == (2 if strength == "-0.1" else 3)
        assert tuple(line) == pytest.approx(tuple(sum(axis) / len(seeds) for axis in zip(*seeds, strict=True)))
    assert sum(len(line.get_xydata()) for line in lines["_centres"]) == 6
    assert sorted(texts) == sorted(["-0.1", "0", "0.03", "-0.1", "0"])
    assert "in the order of strength, whose values are next to them. 2 to 3 seeds." in figure.caption
    assert "1 of 3 seeds each of sgd strength=-0.1, adamw strength=-0.1 diverged" in figure.caption
    assert figure.alt.startswith("Mean effective rank and forgetting: sgd at -0.1 ")


def test_variants_that_differ_in_more_than_a_number_are_not_joined(results: Results) -> None:
    figure = next(figure for figure in against([results]) if "decay" in figure.name)
    axes = on_axes(figure.panels[0])
    assert not [line for line in axes.lines if line.get_label() == "_means"]
    assert "lr=0.1,momentum=0.9" in {text.get_text() for text in axes.texts}
    assert "line" not in figure.caption


FAULTS = {
    "[{x: effective_rnk, y: forgetting}]": "experiments.permuted.figures.0: unknown metric 'effective_rnk'; did you",
    "[{x: forgetting, y: forgetting}]": "figures.0: 'y': expected a different metric from 'x', got 'forgetting'",
    "[{x: forgetting, yy: hoyer}]": "figures.0: unknown key 'yy'; did you mean 'y'?",
    "[{x: sam_sharpness, y: forgetting}]": "expected a metric that the experiment measures, got 'sam_sharpness'",
    "[]": "figures: expected at least 1 entry, got 0",
    "[{x: hoyer, y: forgetting}, {x: hoyer, y: forgetting}]": "the figure 'forgetting against hoyer' is listed twice",
}


@pytest.mark.parametrize("figures", FAULTS)
def test_invalid_figures_are_refused_with_their_place(figures: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    text = SUITE.replace("figures: [{x: effective_rank, y: forgetting}]\n  decay", f"figures: {figures}\n  decay")
    assert text != SUITE
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SuiteError) as caught:
        load_suite(path)
    line = next(i for i, line in enumerate(text.splitlines(), 1) if "figures" in line)
    assert str(caught.value).startswith(f"{path}:{line}:")
    assert FAULTS[figures] in str(caught.value)
