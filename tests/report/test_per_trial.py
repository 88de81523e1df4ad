"""Per-trial records in JSON and csv have the values that a report averages."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from statistics import fmean

import pytest

from optbench.cli import main
from tests.made_runs import made_run
from tests.sent_runs import SUITE

CONTROLLED = SUITE.replace("controls: []", "controls: [sgd]")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["report", *arguments]) == 0
    return capsys.readouterr().out


def test_trials_have_the_values_that_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = made_run(tmp_path, CONTROLLED)
    assert results.control_rows, "the run has controls"
    run = str(results.run.path)
    told = json.loads(said(capsys, run, "--format", "json", "--per-trial"))
    plain = json.loads(said(capsys, run, "--format", "json"))
    trials = told.pop("trials")
    assert told == plain
    assert {row["stage"] for row in trials} == {"eval"}
    keys = ("run", "experiment", "model", "optimizer", "variant", "metric")
    for row in plain["results"]:
        values = [one["value"] for one in trials if all(one[key] == row[key] for key in keys)]
        finite = [value for value in values if value is not None]
        assert len(finite) == row["n"], row
        assert not finite or fmean(finite) == row["mean"]


def test_csv_has_trials_instead_of_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(made_run(tmp_path, CONTROLLED).run.path)
    trials = json.loads(said(capsys, run, "--format", "json", "--per-trial"))["trials"]
    lines = list(csv.DictReader(io.StringIO(said(capsys, run, "--format", "csv", "--per-trial"))))
    assert [list(line) for line in lines] == [list(row) for row in trials]
    shown = [["" if value is None else str(value) for value in row.values()] for row in trials]
    assert [list(line.values()) for line in lines] == shown


@pytest.mark.parametrize("form", ["terminal", "markdown", "html", "latex"])
def test_formats_for_people_have_no_trials(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(made_run(tmp_path, CONTROLLED).run.path)
    assert main(["report", run, "--format", form, "--per-trial"]) == 2
    assert capsys.readouterr() == ("", f"optbench: --per-trial: expected --format csv or json, got {form}\n")
