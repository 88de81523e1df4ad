"""`optbench report`: results of stored runs, in any format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from optbench.cli.output import deliver, say
from optbench.costing.document import cost_report
from optbench.costing.result import find, load
from optbench.counting import count
from optbench.errors import ComparisonError, NothingMeasuredError, UsageError
from optbench.report import Illustration, run_report, summarise
from optbench.report.claims_against import claims_against
from optbench.report.formats import FORMATS, choose_format, render_text
from optbench.report.records import with_trials
from optbench.report.summary import run_summary
from optbench.stats.arms import arms
from optbench.stats.claims_against import claims_of_both
from optbench.stats.comparison import other_metrics, remarks
from optbench.stats.results import Results, read_results
from optbench.store import find_run, read_runs
from optbench.studies import STUDIES
from optbench.suite import suite_differences


def report_runs(
    runs: Sequence[str],
    runs_dir: Path,
    *,
    against: str | None = None,
    format: str | None = None,
    output: str | None = None,
    figures: Path | None = None,
    median: bool = False,
    per_trial: bool = False,
) -> None:
    """Report on runs, side by side if there are several.

    against: a run whose claims are shown next to those of the single run in `runs`; only claims are reported.

    Raises:
        UsageError: the format is unknown, options cannot be combined, or a run is named twice.
        StoreError: there is no such run, it cannot be read, or the output cannot be written.
        NothingMeasuredError: no run has an `ok` or diverged trial; raised after the report is written.
        ComparisonError: as in `report_claims_against`.
    """
    chosen = choose_format(format, output)
    if against is not None:
        if figures is not None or median or per_trial:
            raise UsageError("report: --figures, --median and --per-trial cannot be combined with --against")
        report_claims_against(runs, against, runs_dir, chosen, output)
        return
    if costs := [file for name in runs if (file := find(name, runs_dir)) is not None]:
        _report_costs(runs, costs, chosen, output, others=figures is not None or median or per_trial)
        return
    if per_trial and not FORMATS[chosen].records:
        raise UsageError(f"--per-trial: expected --format csv or json, got {chosen}")
    paths = [find_run(name, runs_dir) for name in runs]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError(f"report: a run is named twice: {', '.join(runs)}")
    results = [read_results(run) for run in read_runs(paths)]
    summary = summarise(results, STUDIES)
    for section, row, text in summary.remarks:
        say(f"optbench: warning: {row.run}, {section.experiment}, {section.model}, {row.label}: {text}")
    inline = FORMATS[chosen].inline
    drawn: list[Illustration] = []
    if inline or figures is not None:
        drawn = illustrations(results, figures, inline=inline, output=output)
        if figures is not None:
            say(f"optbench: {count(len(drawn), 'figure')} in {figures}")
    document = run_report(summary, drawn, "median" if median else "mean")
    deliver(with_trials(document, results) if per_trial else document, chosen, output)
    if not summary.measured:
        raise NothingMeasuredError(f"nothing was measured in {', '.join(run.run for run in summary.runs)}")


def html_report(results: Results) -> str:
    """Return the page that `optbench report --format html` writes for one run."""
    drawn = illustrations([results], None, inline=True, output=None)
    return render_text(run_report(summarise([results], STUDIES), drawn), "html")


def report_claims_against(
    runs: Sequence[str], other: str, runs_dir: Path, chosen: str, output: str | None = None
) -> None:
    """Report on the claims of two runs side by side, each judged on its own run's data.

    Raises:
        UsageError: not exactly two different runs are named, or a result of `optbench cost` is named.
        StoreError: there is no such run, it cannot be read, or the output cannot be written.
        ComparisonError: the versions of the metrics differ, or a suite states no claims; or, after the report is
            written, no claim is the same in both suites and judged in both runs.
    """
    if len(runs) != 1:
        raise UsageError(f"report: expected one run with --against, got {len(runs)}: {', '.join(runs)}")
    for name in (*runs, other):
        if find(name, runs_dir) is not None:
            raise UsageError(f"report: expected runs with --against, got a result of optbench cost: {name}")
    paths = [find_run(name, runs_dir) for name in (*runs, other)]
    if paths[0].resolve() == paths[1].resolve():
        raise UsageError(f"report: expected a different run with --against, got {other} twice")
    both = a, b = [read_results(run) for run in read_runs(paths)]
    if reasons := other_metrics(a, b):
        raise ComparisonError(f"{a.run.id} and {b.run.id} cannot be compared: {'; '.join(reasons)}")
    if lacking := [result.run.id for result in both if not result.suite.claims]:
        suites, state = ("suites", "state") if len(lacking) > 1 else ("suite", "states")
        raise ComparisonError(f"nothing to compare: the {suites} of {' and '.join(lacking)} {state} no claims")
    for remark in remarks(a, b):
        say(f"optbench: warning: {remark}")
    for result in both:
        for arm in arms(result):
            if arm.mixed_code:
                say(f"optbench: warning: {result.run.id}, {arm.experiment}, {arm.model}, {arm.label}: {arm.mixed_code}")
    claims = claims_of_both(a.claims, b.claims)
    apart = suite_differences(a.suite, b.suite)
    deliver(claims_against(run_summary(a), run_summary(b), claims, apart), chosen, output)
    if not any(claim.compared for claim in claims):
        alike = any(claim.alike for claim in claims)
        what = "is judged in both runs" if alike else f"is the same in the suites of {a.run.id} and {b.run.id}"
        raise ComparisonError(f"no claim {what}")


def _report_costs(
    names: Sequence[str], files: Sequence[Path], chosen: str, output: str | None, *, others: bool
) -> None:
    """Report on results of `optbench cost`; raise UsageError if runs, or options for runs, are given as well."""
    if len(files) < len(names):
        raise UsageError(f"report: expected runs or results of optbench cost, got both: {', '.join(names)}")
    if others:
        raise UsageError("report: --figures, --median and --per-trial are for runs, not for results of optbench cost")
    deliver(cost_report([(file.stem, load(file)) for file in files]), chosen, output)


def illustrations(
    results: Sequence[Results], folder: Path | None, *, inline: bool, output: str | None
) -> list[Illustration]:
    """Draw the figures that the results allow: as SVG if `inline`, and as files if a `folder` is given.

    output: the report's path; the paths of the figures' files are relative to its folder.
    """
    from optbench.report.figures import figures, save, to_svg

    found = []
    start = os.path.dirname(output) if output and output != "-" else ""  # noqa: PTH120
    for figure in figures(results, STUDIES):
        files = save(figure, folder) if folder is not None else {}
        found.append(
            Illustration(
                name=figure.name,
                title=figure.title,
                caption=figure.caption,
                alt=figure.alt,
                panels=to_svg(figure) if inline else (),
                files={suffix: os.path.relpath(path, start or ".") for suffix, path in files.items()},
            )
        )
    return found
