"""Claims about one variant of a swept optimizer, and claims that two are equivalent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from optbench.cli import main
from optbench.plan import Trial
from optbench.stats.claims import ClaimVerdict, JudgedClaim, judge_claims
from optbench.stats.power import suite_shortages
from optbench.store.tables import Row
from tests.refusals import refusal
from tests.stats.test_claim_conditions import suite_text
from tests.written_runs import results_of, rows_of, write_run

ABOUT = "experiment: digits, metric: average_accuracy"


def judged(folder: Path, claim: str, left: Sequence[float], right: Sequence[float], others: float = 0.2) -> JudgedClaim:
    """Judge the claim on a run in which adam has accuracies `left` at .001, `right` at .01, and otherwise `others`."""

    def rows(trial: Trial) -> list[Row]:
        rate = trial.hyperparameters["lr"]
        value = {0.001: left, 0.01: right}.get(rate, [others] * len(left))[trial.seed]
        return rows_of("ok", [[0.1, 0.1], [value, 0.1], [value, value]], {}, init_hash=str(trial.seed))

    return judge_claims(results_of(write_run(folder, suite_text(claim, len(left)), rows)))[0]


EIGHT = [0.5 + 0.01 * seed for seed in range(8)]
WIDE = [(-1) ** seed * 0.03 * (1 + seed / 100) for seed in range(8)]


def test_a_side_can_name_one_variant(tmp_path: Path) -> None:
    right = [value - 0.1 - 0.001 * seed for seed, value in enumerate(EIGHT)]
    claim = judged(tmp_path, f"{ABOUT}, left: adam lr=0.001, right: adam lr=0.01, expect: higher", EIGHT, right)
    [part] = claim.parts
    assert not isinstance(part.right, float)
    assert (part.left.variant, part.right.variant) == ("lr=0.001", "lr=0.01")
    assert claim.verdict is ClaimVerdict.SUPPORTED


@pytest.mark.parametrize(
    ("apart", "margin", "verdict"),
    [
        ([0.0] * 8, 0.005, ClaimVerdict.SUPPORTED),
        # Significant, with the same sign on every seed, but smaller than the margin: still equivalent.
        ([0.002 + 1e-5 * seed for seed in range(8)], 0.005, ClaimVerdict.SUPPORTED),
        ([0.1 + 1e-5 * seed for seed in range(8)], 0.005, ClaimVerdict.CONTRADICTED),
        # The estimate exceeds the margin, but the interval reaches into it.
        ([0.0054 + 0.0008 * (seed - 3.5) for seed in range(8)], 0.005, ClaimVerdict.NO_EVIDENCE),
        # Neither a difference nor equivalence is shown.
        (WIDE, 0.005, ClaimVerdict.NO_EVIDENCE),
        (WIDE, 0.05, ClaimVerdict.SUPPORTED),
    ],
)
def test_equivalence_requires_an_interval_within_the_margin(
    apart: list[float], margin: float, verdict: ClaimVerdict, tmp_path: Path
) -> None:
    text = f"{ABOUT}, left: adam lr=0.001, right: adam lr=0.01, expect: equivalent, margin: {margin}"
    claim = judged(tmp_path, text, EIGHT, [x - d for x, d in zip(EIGHT, apart, strict=True)])
    assert claim.verdict is verdict
    [part] = claim.parts
    assert bool(part.reason) == (verdict is not ClaimVerdict.SUPPORTED)
    if verdict is ClaimVerdict.NO_EVIDENCE:
        assert "does not lie within ±0.005" in part.reason


def test_a_variant_is_not_compared_with_itself(tmp_path: Path) -> None:
    [claim] = judge_claims(
        results_of(
            write_run(
                tmp_path,
                suite_text(f"{ABOUT}, left: adam lr=0.001, right: adam, expect: higher", 6),
                lambda trial: rows_of("ok", [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]], {}, init_hash=str(trial.seed)),
            )
        )
    )
    rights = [part.right.variant for part in claim.parts if not isinstance(part.right, float)]
    assert rights == ["lr=1e-05", "lr=0.0001", "lr=0.01"]
    results = claim.parts[0].left.results
    assert "3 parts" in next(s for s in suite_shortages(results.suite, results.trials) if "claim" in s.about).tests


def test_a_report_says_when_a_premise_does_not_hold(tmp_path: Path) -> None:
    premise = f"c: {{{ABOUT}, left: adam lr=0.001, right: 0.9, expect: higher}}"
    text = suite_text(f"{ABOUT}, left: adam lr=0.001, right: 0.2, expect: higher, given: [c]", 8)
    run = write_run(
        tmp_path,
        text.replace("  c: {", f"  {premise}\n  builds: {{"),
        lambda trial: rows_of("ok", [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5 + trial.seed / 1000]], {}, init_hash="0"),
    )
    report = tmp_path / "report.md"
    assert main(["report", str(run), "-o", str(report)]) == 0
    assert "supported; given claim 1, which is contradicted" in report.read_text(encoding="utf-8")


def test_claims_of_equivalence_do_not_raise_the_required_seeds(tmp_path: Path) -> None:
    claim = judged(tmp_path, f"{ABOUT}, left: adam, right: 0.2, expect: equivalent", [0.2] * 6, [0.2] * 6)
    assert [part.verdict for part in claim.parts] == [ClaimVerdict.SUPPORTED] * 4
    results = claim.parts[0].left.results
    assert not [shortage for shortage in suite_shortages(results.suite, results.trials) if "claim" in shortage.about]


DISTANCE = "relative_distance_from_init"


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (
            f"{ABOUT}, left: adam lr=0.002, right: sgd, expect: higher",
            "claims.c.left: unknown variant of adam in digits 'lr=0.002'; did you mean 'lr=0.001'?",
        ),
        (
            f"{ABOUT}, left: adm lr=0.001, right: sgd, expect: higher",
            "claims.c.left: unknown optimizer in digits 'adm'",
        ),
        (
            f"{ABOUT}, left: adam lr=0.001, right: adam lr=0.001, expect: higher",
            "claims.c: right: expected a different optimizer or variant from the left, got adam lr=0.001",
        ),
        (f"{ABOUT}, left: sgd, right: sgd, expect: higher", "claims.c: right: expected a different optimizer or"),
        (f"{ABOUT}, left: adam, right: sgd, expect: higher, given: [d]", "claims.c.given: unknown claim 'd'"),
        (f"{ABOUT}, left: adam, right: sgd, expect: equivalent, margin: 0", "'margin': expected a number above 0"),
        (
            f"experiment: digits, metric: {DISTANCE}, left: adam, right: sgd, expect: equivalent",
            f"claims.c: expect: equivalent: expected a 'margin', got none, and {DISTANCE} has no default margin",
        ),
    ],
)
def test_invalid_sides_and_margins_are_refused(
    claim: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(suite_text(claim), encoding="utf-8")
    assert message in refusal(capsys, tmp_path, "run", path, "--dry-run")
