"""`report --against`: claims of two runs, each judged on its own data, and the verdicts that change."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from optbench.cli import main
from optbench.plan import Trial
from optbench.store.tables import Row
from tests.conftest import FORMATS
from tests.written_runs import rows_of, write_run

SUITE = """
name: {name}
seeds: 8
optimizers: {{sgd: {{target: sgd, lr: {rate}}}, adam: {{target: adam}}, rates: {{target: adam, lr: [0.001, 0.01]}}}}
experiments:
  digits:
    tasks: {{kind: permuted, count: 2}}
    models: {{net: {{kind: mlp, hidden: [4]}}}}
claims:
  up: {{experiment: digits, metric: average_accuracy, left: sgd, right: adam, expect: higher}}
  swept: {{experiment: digits, metric: average_accuracy, left: rates, right: adam, expect: lower, margin: {margin}}}
{more}
"""
STATED = "experiment: digits, metric: average_accuracy, right: adam"


def made(
    folder: Path, name: str, means: Mapping[str, float], more: str = "", rate: float = 0.1, margin: float = 0.01
) -> Path:
    """Write a run with these average accuracies by optimizer and the same small differences between seeds."""

    def rows(trial: Trial) -> list[Row]:
        value = means[trial.optimizer] + 0.001 * trial.seed * (trial.optimizer != "adam")
        return rows_of("ok", [[0.1, 0.1], [value, 0.1], [value, value]], {}, init_hash=str(trial.seed))

    return write_run(folder, SUITE.format(name=name, rate=rate, margin=margin, more=more), rows, name=name)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("against")
    more = f"  mine: {{{STATED}, left: sgd, expect: equivalent}}\n  other: {{{STATED}, left: sgd, expect: higher}}"
    a = made(folder, "full", {"sgd": 0.5, "adam": 0.6, "rates": 0.5}, more)
    more = f"  other: {{{STATED}, left: sgd, expect: lower}}\n  late: {{{STATED}, left: sgd, expect: higher}}"
    return a, made(folder, "raw", {"sgd": 0.7, "adam": 0.6, "rates": 0.5}, more, rate=0.01)


def test_changed_verdicts_are_counted_and_shown_with_both_effects(
    both: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = map(str, both)
    assert main(["report", a, "--against", b, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "optbench-claims-against"
    assert found["counts"] == {"claims": 5, "compared": 2, "changes": 1, "reversed": 1}
    assert found["differences"] == ['name ("full", "raw")', "optimizers.sgd.lr (0.1, 0.01)"]
    by_name = {claim["claim"]: claim for claim in found["claims"]}
    assert list(by_name) == ["up", "swept", "mine", "other", "late"], (
        "claims are in the order of A, followed by those of B alone"
    )
    assert by_name["late"]["a"] is None
    assert by_name["mine"]["b"] is None
    assert by_name["other"]["stated_otherwise"] == [{"setting": "expect", "a": "higher", "b": "lower"}]
    # The numbers equal those in the report of each run.
    for side, path in zip("ab", both, strict=True):
        assert main(["report", str(path), "--format", "json"]) == 0
        own = {claim["claim"]: claim for claim in json.loads(capsys.readouterr().out)["claims"]}
        assert own == {name: claim[side] for name, claim in by_name.items() if claim[side] is not None}
    assert main(["report", a, "--against", b, "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["claim"] for line in lines] == ["up", "swept", "swept", "mine", "other", "other", "late"]
    assert [(line["expect"], not line["n_a"], not line["n_b"]) for line in lines if line["claim"] == "other"] == [
        ("higher", False, True),
        ("lower", True, False),
    ], "every claim has the numbers of its run"
    up = lines[0]
    assert (up["verdict_a"], up["verdict_b"], up["changes"]) == ("contradicted", "supported", "True")
    assert float(up["difference_a"]) == pytest.approx(-0.0965, abs=1e-3)
    assert float(up["low_b"]) <= float(up["difference_b"]) <= float(up["high_b"])


@pytest.mark.parametrize("form", [form for form in FORMATS if form not in ("json", "csv")])
@pytest.mark.parametrize("columns", ["80", "120"])
def test_every_format_for_people_shows_the_same(
    form: str,
    columns: str,
    both: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["report", str(both[0]), "--against", str(both[1]), "--format", form]) == 0
    out = capsys.readouterr().out
    said = " ".join(out.split())
    assert "1 of 2 verdicts changes" not in said
    assert "1 of 2 verdicts change, 1 of them between supported and contradicted; 1 claim is stated in A only" in said
    for what in (
        "claim 1, up: contradicted in A, supported in B",
        "not compared because its settings differ",
        "lr=0.01",
    ):
        assert what in said
    if form == "terminal":
        assert max(map(len, out.splitlines())) <= int(columns)


def test_runs_that_cannot_be_compared_are_refused(
    both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = map(str, both)
    bare = write_run(
        tmp_path, SUITE.format(name="bare", rate=0.1, margin=0, more="").partition("claims:")[0], lambda _: []
    )
    apart = made(tmp_path, "apart", {"sgd": 0.5, "adam": 0.6, "rates": 0.5}, rate=0.1, margin=0.3)
    for words, code, message in (
        ([a, "--against", str(bare)], 4, "nothing to compare: the suite of made states no claims"),
        ([a, "--against", a], 2, "expected a different run with --against"),
        ([a, b, "--against", b], 2, "expected one run with --against, got 2"),
        ([a, "--against", b, "--median"], 2, "--median and --per-trial cannot be combined with --against"),
        ([a, "--against", "nowhere"], 2, "nowhere"),
    ):
        assert main(["report", *words]) == code
        assert message in " ".join(capsys.readouterr().err.split())
    assert main(["report", a, "--against", str(apart)]) == 0
    assert "margin 0.01 in A, 0.3 in B" in " ".join(capsys.readouterr().out.split())
