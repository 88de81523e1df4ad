"""`optbench compare`: compare two runs or two optimizers seed by seed, and judge gates for CI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optbench.cli.output import deliver, say
from optbench.errors import UsageError, unknown
from optbench.report import comparison_report
from optbench.report.comparison_report import place
from optbench.report.formats import choose_format
from optbench.stats.comparison import Selection, compare
from optbench.stats.gates import GateResult, JudgedGate, judge_gates, parse_gate, unmeasured
from optbench.stats.results import read_results
from optbench.store import find_run, read_runs
from optbench.store.read import is_run

DONE, GATE_FAILED = 0, 1


def compare_runs(
    a: str,
    b: str,
    runs_dir: Path,
    *,
    experiments: Sequence[str] = (),
    metrics: Sequence[str] = (),
    gates: Sequence[str] = (),
    everything: bool = False,
    strict: bool = False,
    force: bool = False,
    format: str | None = None,
    output: str | None = None,
) -> int:
    """Print a comparison; return the exit code, 1 if a gate failed.

    Raises:
        UsageError: an option is invalid or names something that does not exist, or a gate refers to a metric that was
            not measured.
        StoreError: a run does not exist or cannot be read, or the output cannot be written.
        ComparisonError: the runs cannot be compared; or, after the report is printed, no seed has finished on both
            sides.
    """
    if everything and metrics:
        raise UsageError("compare: --all cannot be combined with --metric")
    chosen = choose_format(format, output)
    parsed = [parse_gate(text) for text in gates]
    sides = _selections([_side(text, runs_dir) for text in (a, b)])
    known = {**sides[1].results.metrics, **sides[0].results.metrics}
    named = [("--metric", metric) for metric in metrics]
    for option, metric in (*named, *((f"--fail-on '{gate.text}'", gate.metric) for gate in parsed)):
        if metric not in known:
            raise UsageError(f"{option}: {unknown('metric', metric, known)}")
    comparison = compare(*sides, experiments=experiments, force=force)
    if missing := unmeasured(parsed, comparison.pairs):
        places = " and ".join(dict.fromkeys(pair.a.experiment for pair in comparison.pairs))
        what = f"expected a metric that was measured, got '{missing[0].metric}', which neither side has"
        advice = f"add it to `metrics` of {places} in the suite and train again"
        raise UsageError(f"--fail-on '{missing[0].text}': {what}; {advice}")
    for remark in comparison.remarks:
        say(f"optbench: warning: {remark}")
    judged = judge_gates(parsed, comparison.pairs)
    deliver(comparison_report(comparison, judged, metrics, everything=everything), chosen, output)
    comparison.check_paired()
    return _conclude(judged, strict=strict)


def _conclude(judged: Sequence[JudgedGate], *, strict: bool) -> int:
    for found in judged:
        if found.result is not GateResult.PASSED:
            why = f": {found.reason}" if found.reason else ""
            kind = "error" if found.fails(strict=strict) else "warning"
            where = f"{place(found.pair)}, {found.pair.a.label}"
            say(f"optbench: {kind}: gate {found.gate.text} {found.result} on {where}{why}")
    return GATE_FAILED if any(found.fails(strict=strict) for found in judged) else DONE


def _side(text: str, runs_dir: Path) -> tuple[Path, str]:
    """Split `RUN`, `RUN:OPTIMIZER` or `RUN:OPTIMIZER/VARIANT` into the path of the run and the text after the colon.

    An argument that is itself the path or id of a run is not split, because paths and ids can contain colons.

    Raises:
        UsageError: there is no text before or after the colon.
        StoreError: as in `find_run`.
    """
    run, colon, named = text.rpartition(":")
    if not colon or is_run(Path(text)) or is_run(runs_dir / text):
        run, named = text, ""
    elif not named or not run:
        raise UsageError(f"'{text}': expected RUN, RUN:OPTIMIZER or RUN:OPTIMIZER/VARIANT")
    return find_run(run, runs_dir), named


def _selections(sides: Sequence[tuple[Path, str]]) -> list[Selection]:
    paths = list({path.resolve(): path for path, _ in sides}.values())
    read = {run.path.resolve(): read_results(run) for run in read_runs(paths)}
    return [Selection.of(read[path.resolve()], named) for path, named in sides]
