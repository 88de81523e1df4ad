"""Two runs with the same id in different folders are distinguished everywhere; unknown suffixes are refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.cli import main
from optbench.report.figures.series import groups
from optbench.stats.results import read_results
from optbench.store import read_runs
from optbench.store.read import _labels
from tests.execution.test_run_directories import SUITE
from tests.refusals import refusal
from tests.written_runs import rows_of, write_run


@pytest.fixture
def twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write two runs with the same id and different results, and one with another id; return the first two."""
    monkeypatch.chdir(tmp_path)
    seeds = SUITE.replace("seeds: 1", "seeds: 6")
    for folder, accuracy in (("old", 0.8), ("new", 0.9)):
        write_run(Path(folder), seeds, lambda trial, end=accuracy: rows_of(matrix=[[0.1], [end]]), name="same")
    write_run(Path("old"), seeds, lambda trial: rows_of(matrix=[[0.1], [0.5]]), name="other")
    return ["old/runs/same", "new/runs/same"]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_runs_with_the_same_id_are_distinguished_in_every_format(
    twice: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for form in ("terminal", "markdown", "html", "latex", "csv", "json"):
        for command in (["report", *twice], ["compare", *twice]):
            text = said(capsys, *command, "--format", form)
            assert all(name in text for name in twice), (command, form)
    rows = list(csv.DictReader(io.StringIO(said(capsys, "report", *twice, "--format", "csv"))))
    means = {row["run"]: row["mean"] for row in rows if row["metric"] == "average_accuracy"}
    assert {name: float(mean) for name, mean in means.items()} == pytest.approx(
        dict(zip(twice, (0.8, 0.9), strict=True))
    )
    compared = json.loads(said(capsys, "compare", *reversed(twice), "--format", "json"))
    assert (compared["a"], compared["b"]) == (twice[1], twice[0])
    (pair,) = [found for found in compared["results"] if found["metric"] == "average_accuracy"]
    assert (pair["run_a"], pair["run_b"], round(pair["difference"], 6)) == (twice[1], twice[0], 0.1)


def test_runs_with_the_same_id_are_distinguished_in_figures(twice: list[str]) -> None:
    results = [read_results(run) for run in read_runs([Path(name) for name in twice])]
    assert [series.label for group in groups(results) for series in group.series] == [f"sgd ({name})" for name in twice]


def test_runs_with_different_ids_are_shown_by_id(twice: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "report", twice[0], "old/runs/other", "--format", "json"))
    assert [run["run"] for run in found["runs"]] == ["same", "other"]
    found = json.loads(said(capsys, "compare", "same:sgd", "other:sgd", "--runs-dir", "old/runs", "--format", "json"))
    assert (found["a"], found["b"]) == ("same", "other")


def test_one_run_given_by_two_paths_is_recognised(
    twice: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = f"new/../{twice[0]}"
    assert "named twice" in refusal(capsys, tmp_path, "report", twice[0], again)
    assert "expected two different sides" in refusal(capsys, tmp_path, "compare", twice[0], again, code=4)


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda parts: Path("/", *parts))


@given(st.lists(PATHS, min_size=1, max_size=5, unique=True))
def test_labels_are_unique_and_equal_the_ids_if_those_are_unique(paths: list[Path]) -> None:
    labels = _labels(paths)
    assert len(set(labels)) == len(paths)
    names = [path.name for path in paths]
    for path, label in zip(paths, labels, strict=True):
        assert str(path).endswith(label)
        assert (label == path.name) or names.count(path.name) > 1


@pytest.mark.parametrize("command", [["report", "old/runs/same"], ["compare", "old/runs/same", "new/runs/same"]])
@pytest.mark.parametrize("name", ["x.pdf", "x.docx", "x.json.gz", "x.htmll", "a.b/x.PDF"])
def test_an_unknown_suffix_is_refused(
    command: list[str], name: str, twice: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refusal(capsys, tmp_path, *command, "-o", name)
    assert f"unknown suffix '{Path(name).suffix}'" in text
    assert ".html" in text


def test_outputs_with_known_or_no_suffix_are_written(
    twice: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x.HTML", "x", ".hidden", "x.txt", "a.b"):
        form = ["--format", "json"] if name == "a.b" else []
        assert main(["report", twice[0], "-o", name, *form]) == 0
        assert (tmp_path / name).stat().st_size
    assert json.loads((tmp_path / "a.b").read_text())["format"] == "optbench-report"
