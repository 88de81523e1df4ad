"""Adding a study: its blocks, records, csv columns and figures appear in reports automatically."""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from optbench.report import run_report, summarise
from optbench.report.document import Paragraph
from optbench.report.figures import Figure, figures
from optbench.report.formats import FORMATS, choose_format, render_text
from optbench.report.study import FigureKind, Study
from optbench.stats.results import Results
from optbench.studies import STUDIES
from tests.made_runs import made_run


def drawn(results: Sequence[Results]) -> list[Figure]:
    return [Figure("counted", "Counted", "How many.", "3.", (figures(results, ())[0].panels[0],))]


def counted(leads: bool) -> Study[int]:
    return Study(
        "counts",
        find=lambda results: [len(results.trials)],
        blocks=lambda found, several, text: [Paragraph(f"Counted: {found}, several: {several}.")],
        records=lambda found: [{"count": number} for number in found],
        lines=lambda found: [{"metric": "count", "counted": number} for number in found],
        columns=("counted",),
        figures=(FigureKind("counted", drawn),),
        leads=leads,
        provenance=lambda results: [f"counted in {results.run.id}"],
    )


@pytest.mark.parametrize("leads", [True, False])
def test_a_study_appears_in_every_format(leads: bool, tmp_path: Path) -> None:
    results = made_run(tmp_path)
    report = run_report(summarise([results], (*STUDIES, counted(leads))))
    plain = run_report(summarise([results], STUDIES))
    n = len(results.trials)
    for name in ("terminal", "markdown", "html"):
        text = render_text(report, name)
        at, table = text.index(f"Counted: [{n}], several: False"), text.index("learning and forgetting")
        assert (at < table) == leads
        assert "counted in made" in text
    assert json.loads(render_text(report, "json")) == {
        **json.loads(render_text(plain, "json")),
        "counts": [{"count": n}],
    }
    last = list(csv.DictReader(io.StringIO(render_text(report, "csv"))))[-1]
    assert {key: value for key, value in last.items() if value} == {"metric": "count", "counted": str(n)}
    names = [figure.name for figure in figures([results], (*STUDIES, counted(leads)))]
    results_first = next(name for name in names if name.startswith("final-accuracy"))
    assert (names.index("counted") < names.index(results_first)) == leads, "figures follow the order of the tables"
    assert [name for name in names if name != "counted"] == [figure.name for figure in figures([results], STUDIES)]
    assert names.count("counted") == 1


def test_a_format_needs_only_a_module_and_a_registry_line(tmp_path: Path) -> None:
    suffixes = [suffix for found in FORMATS.values() for suffix in found.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    report = run_report(summarise([made_run(tmp_path)], STUDIES))
    for name, found in FORMATS.items():
        assert all(choose_format(None, f"report{suffix}") == name for suffix in found.suffixes)
        assert importlib.import_module(f"optbench.report.formats.{name}").render(report)


def test_the_report_package_does_not_import_studies(tmp_path: Path) -> None:
    results = made_run(tmp_path)
    report = run_report(summarise([results], ()))
    assert set(json.loads(render_text(report, "json"))).isdisjoint(study.name for study in STUDIES)
    for name in FORMATS:
        assert render_text(report, name)
