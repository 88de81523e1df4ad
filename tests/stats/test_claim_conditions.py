"""Claims with conditions on variants: which variants take part, how others are reported, and what is refused."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from optbench.cli import main
from optbench.plan import Trial
from optbench.stats.claims import ClaimVerdict, JudgedClaim, judge_claims
from optbench.stats.results import Results
from optbench.store.tables import Row
from optbench.suite import dump_suite, load_suite, suite_hash
from tests.refusals import refusal
from tests.written_runs import results_of, rows_of, write_run

RATES = (1e-5, 1e-4, 1e-3, 1e-2)
SUITE = """\
name: rates
seeds: {seeds}
optimizers:
  sgd: {{target: sgd, lr: 0.1}}
  adam: {{target: adam, lr: {rates}}}
experiments:
  digits:
    tasks: {{kind: class-incremental, group_size: 5}}
    models: {{small: {{kind: mlp, hidden: [10]}}}}
claims:
  c: {{{claim}}}
"""
KEEPS_NOTHING = "experiment: digits, metric: earlier_tasks_accuracy, left: adam, right: 0.1, expect: lower"
LEARNS = "where: {last_task_accuracy: {above: 0.9}}"


def suite_text(claim: str, seeds: int = 8, rates: Sequence[float] = RATES) -> str:
    listed = "[" + ", ".join(map(str, rates)) + "]" if len(rates) > 1 else str(rates[0])
    return SUITE.format(seeds=seeds, rates=listed, claim=claim)


def made(folder: Path, claim: str, last: Sequence[Sequence[float]], earlier: Sequence[float], **given: object) -> Path:
    """Write a run in which adam at RATES[i] has accuracy `earlier[i]` on the first pair, `last[i][s]` on the last."""
    rates = tuple(given.pop("rates", RATES))  # type: ignore[call-overload]

    def rows(trial: Trial) -> list[Row]:
        i = RATES.index(trial.hyperparameters["lr"]) if trial.optimizer == "adam" else 0
        kept = earlier[i] + 0.001 * trial.seed
        matrix = [[0.1, 0.1], [0.99, 0.1], [kept, last[i][trial.seed]]]
        return rows_of("ok", matrix, {}, init_hash=str(trial.seed))

    return write_run(folder, suite_text(claim, len(last[0]), rates), rows, **given)  # type: ignore[arg-type]


def judged(results: Results) -> JudgedClaim:
    return judge_claims(results)[0]


SLOW = (0.374, 0.94, 0.95, 0.6)
KEPT = (0.337, 0.002, 0.0, 0.001)


def spread(means: Sequence[float], seeds: int = 8) -> list[list[float]]:
    """Return values over seeds with these means; the deviations of seeds sum to 0."""
    return [[mean + 0.001 * (s - (seeds - 1) / 2) for s in range(seeds)] for mean in means]


def test_claims_about_any_learning_rate_depend_on_whether_it_must_learn(tmp_path: Path) -> None:
    literal = judged(results_of(made(tmp_path, KEEPS_NOTHING, spread(SLOW), KEPT, name="literal")))
    assert literal.verdict is ClaimVerdict.CONTRADICTED, (
        "the learning rate that has not learnt the last pair contradicts it"
    )
    assert (len(literal.parts), literal.left_out) == (4, ())
    restated = judged(results_of(made(tmp_path, f"{KEEPS_NOTHING}, {LEARNS}", spread(SLOW), KEPT, name="restated")))
    assert restated.verdict is ClaimVerdict.SUPPORTED
    assert [part.left.variant for part in restated.parts] == ["lr=0.0001", "lr=0.001"]
    assert [(found.arm.variant, found.unmet[0].mean) for found in restated.left_out] == [
        ("lr=1e-05", pytest.approx(0.374)),
        ("lr=0.01", pytest.approx(0.6)),
    ]


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([0.2, 0.5, 0.85, 0.9, 0.95, 1.0]), min_size=6, max_size=6), min_size=4, max_size=4
    ),
    st.lists(st.sampled_from([0.0, 0.05, 0.3]), min_size=4, max_size=4),
    st.sampled_from([(0.81, None), (None, 0.81), (0.61, 0.91)]),
)
def test_a_conditional_claim_equals_the_claim_about_the_variants_that_meet_it(
    last: list[list[float]], earlier: list[float], bounds: tuple[float | None, float | None]
) -> None:
    # No mean of six of these values equals a bound, so rounding cannot decide.
    above, below = bounds
    said = ", ".join(f"{k}: {v}" for k, v in (("above", above), ("below", below)) if v is not None)
    inside = [
        rate
        for rate, values in zip(RATES, last, strict=True)
        if (above is None or np.mean(values) > above) and (below is None or np.mean(values) < below)
    ]
    with tempfile.TemporaryDirectory() as folder:
        claim = f"{KEEPS_NOTHING}, where: {{last_task_accuracy: {{{said}}}}}"
        found = judged(results_of(made(Path(folder), claim, last, earlier)))
        assert [part.left.trials[0].hyperparameters["lr"] for part in found.parts] == inside
        assert {item.arm.trials[0].hyperparameters["lr"] for item in found.left_out} == set(RATES) - set(inside)
        if not inside:
            assert found.verdict is ClaimVerdict.NOT_COMPARABLE
            return
        # The same suite without the excluded variants, judged without a condition.
        alone = judged(results_of(made(Path(folder), KEEPS_NOTHING, last, earlier, rates=inside, name="alone")))
    assert found.verdict is alone.verdict
    assert [part.judgement for part in found.parts] == [part.judgement for part in alone.parts]
    assert [part.result for part in found.parts] == [part.result for part in alone.parts]


def test_a_mean_at_the_bound_is_neither_above_nor_below_it(tmp_path: Path) -> None:
    last = [[0.9] * 6, [0.91] * 6, [0.89] * 6, [0.9] * 6]
    for word, inside in (("above", ["lr=0.0001"]), ("below", ["lr=0.001"])):
        claim = f"{KEEPS_NOTHING}, where: {{last_task_accuracy: {{{word}: 0.9}}}}"
        found = judged(results_of(made(tmp_path, claim, last, [0.0] * 4, name=word)))
        assert [part.left.variant for part in found.parts] == inside


def test_conditions_hold_for_both_sides_and_for_several_metrics(tmp_path: Path) -> None:
    two = "last_task_accuracy: {above: 0.9}, earlier_tasks_accuracy: {above: 0.001, below: 0.3}"
    claim = f"experiment: digits, metric: forgetting, left: sgd, right: adam, expect: lower, where: {{{two}}}"
    # sgd has the values of the first learning rate, which learns.
    found = judged(results_of(made(tmp_path, claim, spread((0.95, 0.94, 0.95, 0.6)), (0.2, 0.2, 0.5, 0.9))))
    assert [(part.left.label, getattr(part.right, "label", "")) for part in found.parts] == [
        ("sgd", "adam lr=1e-05"),
        ("sgd", "adam lr=0.0001"),
    ]
    assert [(item.arm.label, [unmet.metric for unmet in item.unmet]) for item in found.left_out] == [
        ("adam lr=0.001", ["earlier_tasks_accuracy"]),
        ("adam lr=0.01", ["last_task_accuracy", "earlier_tasks_accuracy"]),
    ]
    none = judged(results_of(made(tmp_path, claim, spread((0.5, 0.94, 0.95, 0.6)), (0.2, 0.2, 0.2, 0.2), name="none")))
    assert none.parts == (), "without the left side there are no parts"
    assert none.left_out[0].arm.label == "sgd"


def test_the_mean_is_over_trials_that_are_ok_and_their_number_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(trial: Trial) -> list[Row]:
        slow = trial.optimizer == "adam" and trial.hyperparameters["lr"] == RATES[0]
        lost = trial.optimizer == "adam" and trial.hyperparameters["lr"] == RATES[3]
        once = trial.optimizer == "adam" and trial.hyperparameters["lr"] == RATES[2] and trial.seed == 1
        if (slow and trial.seed < 3) or lost or once:
            return rows_of("diverged", [[0.1, 0.1], [None, None], [None, None]], {}, init_hash=str(trial.seed))
        return rows_of("ok", [[0.1, 0.1], [0.9, 0.1], [0.0, 0.3 if slow else 0.95]], {}, init_hash=str(trial.seed))

    write_run(tmp_path, suite_text(f"{KEEPS_NOTHING}, {LEARNS}"), rows)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "made", "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    assert "left out: mean last task accuracy 0.3 over 5 of 8 seeds, not above 0.9" in shown
    assert "adam lr=0.01: left out: last task accuracy has no value on any of 8 seeds" in shown
    said = "the condition is judged on the {} of 8 seeds that are ok"
    assert f"claim 1, small, adam lr=0.001: {said.format(7)}" in shown
    assert shown.count("the condition is judged on") == 1


@pytest.mark.parametrize("name", ["terminal", "markdown", "html", "latex"])
def test_every_format_shows_the_condition_and_excluded_variants(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    made(tmp_path, f"{KEEPS_NOTHING}, {LEARNS}", spread(SLOW), KEPT)
    assert main(["report", "made", "--format", name]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out.replace("\\", ""))
    assert "where the mean last task accuracy is above 0.9" in shown
    assert "supported (2 of 2; 2 left out)" in shown
    assert "claim 1, small, adam lr=1e-05: left out: mean last task accuracy 0.374, not above 0.9" in shown


def test_json_has_the_condition_and_excluded_variants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path, f"{KEEPS_NOTHING}, {LEARNS}", spread(SLOW), KEPT)
    assert main(["report", "made", "--format", "json"]) == 0
    claim = json.loads(capsys.readouterr().out)["claims"][0]
    assert claim["where"] == {"last_task_accuracy": {"above": 0.9, "below": None}}
    assert [part["left_variant"] for part in claim["parts"]] == ["lr=0.0001", "lr=0.001"]
    assert claim["left_out"][0] == {
        "model": "small",
        "optimizer": "adam",
        "variant": "lr=1e-05",
        "unmet": [{"metric": "last_task_accuracy", "mean": pytest.approx(0.374), "n": 8, "planned": 8}],
    }


def test_a_condition_survives_a_round_trip_and_does_not_change_the_hash(tmp_path: Path) -> None:
    path, again = tmp_path / "a.yaml", tmp_path / "b.yaml"
    path.write_text(suite_text(f"{KEEPS_NOTHING}, where: {{forgetting: {{below: 1}}, hoyer: {{above: 0, below: 1}}}}"))
    suite = load_suite(path)
    again.write_text(dump_suite(suite))
    assert load_suite(again) == suite
    assert suite.claims["c"].where["hoyer"].below == 1.0
    path.write_text(suite_text(KEEPS_NOTHING))
    assert suite_hash(load_suite(path)) == suite_hash(suite)


AT = len("  c: {") + len(KEEPS_NOTHING) + len(", where: {") + 1
"""The column of the first metric of a condition."""


@pytest.mark.parametrize(
    ("where", "column", "said"),
    [
        (
            "{last_task_acuracy: {above: 0.9}}",
            AT,
            "unknown metric 'last_task_acuracy'; did you mean 'last_task_accuracy'",
        ),
        ("{forgetting: {abov: 0.9}}", AT + 13, "unknown key 'abov'; did you mean 'above'"),
        ("{forgetting: {}}", AT + 12, "claims.c.where.forgetting: expected 'above', 'below' or both"),
        ("{forgetting: {above: 0.5, below: 0.5}}", AT + 12, "no value lies above 0.5 and below 0.5"),
        ("{forgetting: 0.9}", AT + 12, "a mapping"),
        ("{forgetting: {above: high}}", AT + 20, "a number"),
        ("{forgetting: {above: .nan}}", AT + 20, "finite"),
        ("[forgetting]", AT - 1, "a mapping"),
    ],
)
def test_an_invalid_condition_is_refused_with_its_place(
    where: str, column: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(suite_text(f"{KEEPS_NOTHING}, where: {where}"), encoding="utf-8")
    message = refusal(capsys, tmp_path, "run", path, "--dry-run")
    assert message.startswith(f"{path}:11:{column}: "), message
    assert said in message


def test_continual_states_both_readings_of_any_learning_rate() -> None:
    text = (Path(__file__).parents[2] / "suites" / "continual.yaml").read_text(encoding="utf-8")
    claims = yaml.safe_load(text)["claims"]
    literal, learns = (
        claims["a-smaller-rate-does-not-save-adam"],
        claims["a-smaller-rate-that-learns-does-not-save-adam"],
    )
    assert "where" not in literal
    assert learns.pop("where") == {"last_task_accuracy": {"above": 0.9}}
    assert learns.pop("text") != literal.pop("text")
    assert literal == learns
