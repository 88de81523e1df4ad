"""The number of seeds that a verdict needs, and the places where users are told that there are too few."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from optbench.cli import main
from optbench.plan import Trial
from optbench.stats.paired import PairedValues, compare_paired
from optbench.stats.power import claim_shortages, comparison_shortages, seeds_needed, shortage_text
from optbench.stats.verdict import Question, Verdict, judge
from optbench.store.tables import Row
from tests.refusals import refusal
from tests.written_runs import rows_of, write_run

pytestmark = pytest.mark.usefixtures("_train_here")

SUITE = """\
name: few
seeds: {seeds}
optimizers:
  sgd: {{target: sgd, lr: 0.1}}
  rates: {{target: adam, lr: [0.001, 0.01]}}
experiments:
  permuted:
    tasks: {{kind: permuted, count: 2}}
    models: {{small: {{kind: mlp, hidden: [4]}}, wide: {{kind: mlp, hidden: [8]}}}}
    protocol: {{max_steps: 2, train_examples: 300, validation_examples: 100, test_examples: 100}}
  digits:
    tasks: {{kind: class-incremental, group_size: 5}}
    models: {{small: {{kind: mlp, hidden: [4]}}}}
    protocol: {{max_steps: 2, train_examples: 300, validation_examples: 100, test_examples: 100}}
    primary: {primary}
claims:
  all: {{experiment: permuted, metric: forgetting, left: sgd, right: rates, expect: lower}}
  one: {{experiment: permuted, models: [wide], metric: forgetting, left: sgd, right: 0.5, expect: lower}}
"""


def suite_text(seeds: object, primary: str = "[average_accuracy, forgetting, effective_rank]") -> str:
    return SUITE.format(seeds=seeds, primary=primary)


def rows(trial: Trial) -> Sequence[Row]:
    """Return rows in which sgd forgets less than the others, by a different amount on each seed."""
    forgets = (0.1 if trial.optimizer == "sgd" else 0.2) + 0.001 * trial.seed * (trial.optimizer == "sgd")
    matrix = [[0.1, 0.1], [0.9, 0.1], [0.9 - forgets, 0.9]]
    return rows_of("ok", matrix, {"effective_rank": 20 + 10 * forgets}, init_hash=str(trial.seed))


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("\\", ""))


# --- Numbers of seeds


@pytest.mark.parametrize(
    ("family", "needed"), [(1, 6), (2, 7), (3, 7), (4, 8), (6, 8), (7, 9), (12, 9), (13, 10), (25, 10)]
)
def test_the_required_number_of_seeds_is_the_smallest_that_gives_a_verdict(family: int, needed: int) -> None:
    assert seeds_needed(family) == needed

    def verdicts(n: int) -> set[Verdict]:
        # The clearest possible result: all seeds agree in every metric.
        pairs = PairedValues(np.arange(1.0, n + 1), np.zeros(n), np.zeros(n, np.bool_), np.zeros(n, np.bool_))
        found = judge([Question(compare_paired(pairs, "higher"), "higher", 0.0)] * family)
        told = needed if n < needed else None
        assert {judgement.seeds_needed for judgement in found} == {told}
        return {judgement.verdict for judgement in found}

    assert verdicts(needed) == {Verdict.BETTER}
    assert verdicts(needed - 1) <= {Verdict.NO_EVIDENCE, Verdict.NOT_COMPARABLE}


def test_families_of_different_size_are_reported_separately() -> None:
    assert comparison_shortages({"a": 3, "b": 1}, 7) == []
    text = shortage_text(comparison_shortages({"a": 3, "b": 1, "c": 3}, 5))
    assert text == (
        "5 seeds are too few to show a difference: "
        "expected at least 7 for a and c (3 primary metrics: smallest p after Holm's correction 0.188), "
        "at least 6 for b (1 primary metric: smallest p after Holm's correction 0.0625)"
    )
    assert claim_shortages([1, 3, 0], 7) == []
    assert "at least 9 for 1 of 3 claims (7 parts: " in shortage_text(claim_shortages([1, 3, 7], 8))
    assert "at least 9 for all 3 claims (up to 7 parts: " in shortage_text(claim_shortages([1, 3, 7], 2))
    assert shortage_text(claim_shortages([1], 1)).startswith("1 seed is too few to show a difference")


# --- Where it is reported

SIX = "6 seeds are too few to show a difference: expected at least 7 for permuted and digits (3 primary metrics"


def test_a_dry_run_reports_too_few_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(suite_text(6))
    assert main(["run", str(path), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.count("too few") == 1
    assert SIX in out
    assert "at least 8 for 1 of 2 claims (4 parts" in out
    assert err == ""
    assert main(["run", str(path), "--dry-run", "--seeds", "8"]) == 0
    assert "too few" not in capsys.readouterr().out
    # Experiments with different families, and a tuning suite, which has no verdicts.
    path.write_text(suite_text(6, "[average_accuracy]"))
    assert main(["run", str(path), "--dry-run"]) == 0
    assert "expected at least 7 for permuted (3 primary" in capsys.readouterr().out
    path.write_text("stage: tune\n" + suite_text(6))
    assert main(["run", str(path), "--dry-run"]) == 0
    assert "too few" not in capsys.readouterr().out


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_run_reports_too_few_seeds_first_and_in_its_report(
    quiet: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(suite_text(2))
    runs = ["--runs-dir", str(tmp_path / "runs"), *quiet]
    assert main(["run", str(path), "--experiment", "permuted", "--model", "wide", *runs]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("optbench: warning: 2 seeds are too few to show a difference: expected at least 7 for perm")
    assert (words(err).count("too few"), words(out).count("too few")) == (1, 1)
    assert words(out).index("too few") < words(out).index("learning and forgetting")
    assert "2 pairs" not in out, "reported once, not for every part of every claim"


def test_a_refused_run_reports_only_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(suite_text(2))
    said = refusal(capsys, tmp_path, "run", path, "--runs-dir", tmp_path / "s.yaml")
    assert "too few" not in said


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for seeds in (3, 6, 8):
        write_run(folder, suite_text(seeds), rows, name=f"of-{seeds}")

    def unfinished(trial: Trial) -> Sequence[Row]:
        return rows_of("failed") if trial.optimizer == "rates" and trial.seed >= 6 else rows(trial)

    write_run(folder, suite_text(8), unfinished, name="lost")
    return folder / "runs"


@pytest.mark.parametrize("form", ["terminal", "markdown", "html", "latex"])
def test_a_report_mentions_too_few_seeds_once(form: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in (("of-3", 1), ("of-6", 1), ("of-8", 0)):
        assert main(["report", name, "--runs-dir", str(runs), "--format", form]) == 0
        shown = words(capsys.readouterr().out)
        assert shown.count("too few to show") == said
        assert "smallest two-sided p" not in shown
        assert "cannot show a difference" not in shown


def test_a_report_says_which_parts_have_too_few_seeds_after_failures(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight seeds would be enough, but one side has six left; this is reported once for all parts."""
    assert main(["report", "lost", "--runs-dir", str(runs), "--format", "markdown"]) == 0
    shown = words(capsys.readouterr().out)
    assert "too few to show" not in shown
    assert shown.count("6 pairs cannot show a difference in a family of 4") == 1


def test_compare_mentions_too_few_seeds_once(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = ["of-6:sgd", "of-6:rates", "--runs-dir", str(runs)]
    assert main(["compare", *sides]) == 0
    out, err = capsys.readouterr()
    assert (words(out).count("too few"), err.count("too few")) == (1, 1)
    assert SIX in err
    assert "cannot show a difference" not in out
    assert main(["compare", *sides, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert SIX in told["remarks"][0]
    assert {record["seeds_needed"] for record in told["results"] if record["primary"]} == {7}
    assert main(["compare", *sides, "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["seeds_needed"] for row in table} == {"7", ""}
    assert main(["compare", "of-8:sgd", "of-8:rates", "--runs-dir", str(runs)]) == 0
    out, err = capsys.readouterr()
    assert (err, "too few" in out) == ("", False)


def test_compare_names_the_pairs_that_lost_seeds(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a comparison of two runs, sgd has eight seeds on both sides and the others six."""
    assert main(["compare", "lost", "of-8", "--runs-dir", str(runs)]) == 0
    err = capsys.readouterr().err
    assert err.count("too few") == 1
    assert "permuted, small: rates lr=0.001 against rates lr=0.001, " in err
    assert "and 3 more (3 primary metrics" in err
    assert "sgd" not in err


def test_the_json_of_a_report_has_the_required_number_of_seeds(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "of-3", "--runs-dir", str(runs), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "expected at least 7" in told["runs"][0]["too_few_seeds"]
    assert [part["seeds_needed"] for claim in told["claims"] for part in claim["parts"]] == [8, 8, 8, 8, 6]


# --- One model of several


def test_the_model_option_keeps_experiments_and_claims_about_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(suite_text(2))

    def trained(*options: str) -> set[tuple[str, str]]:
        assert main(["run", str(path), "--dry-run", *options]) == 0
        lines = re.findall(r"to do (\S+)", capsys.readouterr().out)
        return {(experiment, model) for experiment, model, *_ in (line.split("/") for line in lines)}

    assert trained() == {("permuted", "small"), ("permuted", "wide"), ("digits", "small")}
    assert trained("--model", "wide") == {("permuted", "wide")}
    assert trained("--model", "wide", "--model", "small") == trained()
    assert trained("--model", "small", "--experiment", "digits") == {("digits", "small")}
    said = refusal(capsys, tmp_path, "run", path, "--model", "wid", "--dry-run")
    assert said == "--model: unknown model 'wid'; did you mean 'wide'? (valid: small, wide)"
    said = refusal(capsys, tmp_path, "run", path, "--model", "wide", "--experiment", "digits", "--dry-run")
    assert said == "--model: experiment 'digits' has none of the given names (valid: small)"


def test_claims_about_an_excluded_model_are_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, runs_dir = tmp_path / "s.yaml", tmp_path / "runs"
    path.write_text(suite_text(1).replace("models: [wide]", "models: [wide, small]"))
    for model, optimizer in (("wide", "sgd"), ("small", "sgd")):
        name = f"of-{model}"
        command = ["run", path, "--model", model, "--optimizer", optimizer, "--runs-dir", runs_dir, "--name", name]
        assert main([*map(str, command), "--experiment", "permuted", "--quiet"]) == 0
        capsys.readouterr()
        assert main(["report", name, "--runs-dir", str(runs_dir), "--format", "json"]) == 0
        claims = json.loads(capsys.readouterr().out)["claims"]
        assert [[part["model"] for part in claim["parts"]] for claim in claims] == [[model]]
        # The stored suite repeats the run.
        assert main(["run", str(runs_dir / name / "suite.yaml"), "--dry-run"]) == 0
