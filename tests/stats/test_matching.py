"""Claims at matched accuracy: the nearest variants on validation data are compared, the others are listed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.errors import SuiteError
from optbench.plan import Trial
from optbench.stats.claims import ClaimVerdict, JudgedClaim, judge_claims
from optbench.stats.power import suite_shortages
from optbench.store.tables import AccuracyRow, MetricRow, Row
from optbench.suite import load_suite
from tests.conftest import report
from tests.written_runs import results_of, trial_row, write_run

SUITE = """
name: matched
seeds: 7
optimizers:
  shampoo: {target: sgd, lr: 0.3}
  adamw: {target: adamw, lr: [0.001, 0.01, 0.1]}
experiments:
  one:
    tasks: {kind: permuted, count: 2}
    models: {m: {kind: mlp}, n: {kind: mlp, hidden: [20]}}
    metrics: [default]
claims:
  rank: {CLAIM}
"""
RANK = "{experiment: one, metric: effective_rank, left: LEFT, right: RIGHT, expect: EXPECT, MATCHED}"
WITHIN = "matched: {on: learning_accuracy, within: 0.005}"
# Validation accuracy, test accuracy and rank by variant; on test data another variant would be nearest.
FOUND = {
    "default": (0.970, 0.960, 50.0),
    "lr=0.001": (0.940, 0.960, 60.0),
    "lr=0.01": (0.973, 0.930, 30.0),
    "lr=0.1": (0.990, 0.950, 70.0),
}


def text(claim: str, left: str = "shampoo", right: str = "adamw", expect: str = "higher") -> str:
    claim = claim.replace("LEFT", left).replace("RIGHT", right).replace("EXPECT", expect)
    return SUITE.replace("{CLAIM}", claim.replace("MATCHED", WITHIN))


def rows_of(trial: Trial, status: str = "ok") -> list[Row]:
    validated, tested, rank = FOUND[trial.variant]
    shift = 0.001 * trial.seed - (0.1 if trial.model == "n" and trial.optimizer == "shampoo" else 0)
    places = ((after, task) for after in range(3) for task in (1, 2))
    accuracy = [AccuracyRow(*place, tested + shift, 0.1, 100, validated + shift, 0.1) for place in places]
    row = trial_row(status, init_hash=str(trial.seed))
    return [
        row,
        *accuracy,
        MetricRow(2, None, "features", "effective_rank", rank + trial.seed * (1 + rank / 100), None),
    ]


def judged(folder: Path, suite: str, rows: Callable[[Trial], list[Row]] = rows_of) -> JudgedClaim:
    return judge_claims(results_of(write_run(folder, suite, rows)))[0]


def test_the_nearest_variant_on_validation_data_is_compared(tmp_path: Path) -> None:
    claim = judged(tmp_path, text(RANK))
    (part,) = claim.parts
    assert not isinstance(part.right, float)
    assert (part.model, part.left.variant, part.right.variant) == ("m", "default", "lr=0.01")
    assert part.match is not None
    assert (part.match.n, part.match.choices) == (7, 3)
    assert part.match.difference == pytest.approx(-0.003)
    assert claim.verdict is ClaimVerdict.SUPPORTED
    (far,) = claim.unmatched
    assert (far.left.model, far.right.variant) == ("n", "lr=0.001"), "on the other model no variant is near enough"
    assert far.difference == pytest.approx(-0.07)


def test_sides_can_be_swapped(tmp_path: Path) -> None:
    """A single variant on the right is matched with one variant on the left, not with every one."""
    claim = judged(tmp_path, text(RANK, "adamw", "shampoo", "lower"))
    (part,) = claim.parts
    assert part.left.variant == "lr=0.01"
    assert part.match is not None
    assert part.match.difference == pytest.approx(0.003)
    assert claim.verdict is ClaimVerdict.SUPPORTED


def test_a_variant_that_mostly_diverged_is_not_matched(tmp_path: Path) -> None:
    def rows(trial: Trial) -> list[Row]:
        return rows_of(trial, "diverged" if trial.variant == "lr=0.01" and trial.seed > 2 else "ok")

    claim = judged(tmp_path, text(RANK), rows)
    assert not claim.parts
    assert claim.verdict is ClaimVerdict.NOT_COMPARABLE
    assert [pair.right.variant for pair in claim.unmatched] == ["lr=0.1", "lr=0.001"]


def test_only_matched_parts_count_towards_the_required_seeds(tmp_path: Path) -> None:
    results = results_of(write_run(tmp_path, text(RANK), rows_of))
    assert not [found for found in suite_shortages(results.suite, results.trials) if "claim" in found.about]
    crossed = results_of(write_run(tmp_path, text(RANK.replace(", MATCHED", "")), rows_of, name="crossed"))
    (short,) = (found for found in suite_shortages(crossed.suite, crossed.trials) if "claim" in found.about)
    assert (short.family, short.needed) == (6, 8)


def test_a_report_lists_matched_and_unmatched_variants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path, text(RANK), rows_of)
    shown = " ".join(report(path, "markdown", capsys).replace("\\", "").split())
    assert "[at matched learning accuracy]" in shown
    assert (
        "claim 1, m: matched: shampoo 0.9730, adamw lr=0.01 0.9760: -0.0030 in mean learning accuracy on validation "
        "data (7 seeds), the nearest of 3" in shown
    )
    assert "claim 1, n: left out, no match: shampoo 0.8730, adamw lr=0.001 0.9430: -0.0700" in shown
    assert "more than 0.005" in shown
    (claim,) = json.loads(report(path, "json", capsys))["claims"]
    assert claim["parts"][0]["match"]["difference"] == pytest.approx(-0.003)
    assert [pair["model"] for pair in claim["unmatched"]] == ["n"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("metric: effective_rank", "metric: learning_accuracy"),
            "'matched': expected a metric other than the claim's",
        ),
        (("right: adamw", "right: 3"), "'matched': expected an optimizer on the right, got 3"),
        (("on: learning_accuracy", "on: learning_acuracy"), "did you mean 'learning_accuracy'?"),
        (("within: 0.005", "within: 0"), "matched.within: expected a number above 0, got 0"),
        ((", within: 0.005", ""), "matched: expected the key 'within'"),
    ],
)
def test_invalid_matching_is_refused(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text(RANK).replace(*change))
    with pytest.raises(SuiteError, match=re.escape(message)):
        load_suite(path)
