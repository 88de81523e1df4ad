"""Regenerate the panel of `optbench fingerprint`: all optimizers of the suite, tuned in the same way, on ten seeds.

    python benchmarks/panel.py [--runs-dir runs/panel]     # an hour on two cores; resumes after an interruption
    python benchmarks/panel.py --check PANEL               # only test the distance on an existing panel

An optimizer whose run is already complete is not trained again. The panel is written to the package when all runs are
complete; `python benchmarks/gallery.py` then writes the pages of docs/gallery.

The distance is tested with one half of the seeds against the other: the optimizer on the odd seeds that is nearest to a
given optimizer on the even seeds should be the same optimizer, and vice versa.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import optbench.studies.fingerprint as package
from optbench.execution.session import Options
from optbench.execution.view import View
from optbench.stats.results import Results, read_results
from optbench.store import read_run
from optbench.studies.fingerprint import panel as panels
from optbench.studies.fingerprint import training
from optbench.studies.fingerprint.neighbours import own_half_is_nearest
from optbench.studies.fingerprint.panel import FILE, Panel
from optbench.studies.fingerprint.standing import learnt_only
from optbench.studies.fingerprint.strips import SUITE
from optbench.studies.fingerprint.training import TUNE
from optbench.suite import load_suite, resolve_suite_path

SHIPPED = Path(package.__file__).parent / FILE
SAID = ("optbench", "torch", "python", "platform", "cpu", "cpu_capability", "device", "cores")
"""The entries of a run's provenance that the panel stores."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/panel"))
    parser.add_argument("--check", type=Path, metavar="PANEL", help="test a panel without training")
    options = parser.parse_args()
    if options.check is not None:
        return check(panels.read(options.check))
    names = list(load_suite(resolve_suite_path(SUITE)).optimizers)
    for name in names:
        if not complete(options.runs_dir / name):
            train(name, options.runs_dir)
    found = [(results(options.runs_dir / name), results(options.runs_dir / f"{name}{TUNE}")) for name in names]
    panels.write(made := panels.of_runs(found, said([one for one, _ in found])), SHIPPED)
    print(f"{SHIPPED}: {len(names)} optimizers, {SHIPPED.stat().st_size / 1024:.0f} KiB")
    return check(made)


def train(name: str, runs_dir: Path) -> None:
    """Tune and train an optimizer, or resume after an interruption."""
    started = time.monotonic()
    begun = runs_dir / f"{name}{TUNE}"
    resume = begun if (begun / "run.json").is_file() else None
    # The command is not used, because it ends by drawing a page from the panel that is about to be replaced.
    options = Options(
        runs_dir=runs_dir, name=None if resume else name, resume=resume, command=("benchmarks/panel.py",), leaves=True
    )
    if training.train(training.Wanted(name), options, View()).interrupted:
        sys.exit(130)
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


def complete(path: Path) -> bool:
    return (path / "run.json").is_file() and read_run(path).record.get("status") == "complete"


def results(path: Path) -> Results:
    return read_results(read_run(path))


def said(runs: list[Results]) -> dict[str, Any]:
    """Return the provenance shared by the runs; raise SystemExit if it differs between them."""
    kept = [{key: run.run.record["provenance"].get(key) for key in SAID} for run in runs]
    for run, one in zip(runs, kept, strict=True):
        if one != kept[0]:
            sys.exit(f"{run.run.id}: expected a run made with {kept[0]}, got {one}")
    return kept[0]


def check(panel: Panel) -> int:
    """Print how many optimizers are nearest to themselves on the other half of the seeds; return the exit code."""
    values = np.stack([entry.values for entry in learnt_only(panel).entries])
    places = np.arange(len(panel.seeds))
    right = []
    for query, rest in ((places[0::2], places[1::2]), (places[1::2], places[0::2])):
        found = own_half_is_nearest(values, panel.names, query, rest)
        wrong = {name: nearest for name, nearest in found.items() if name != nearest}
        right.append(len(found) - len(wrong))
        listed = ", ".join(f"{name} is nearest to {nearest}" for name, nearest in wrong.items()) or "none missed"
        print(f"nearest to their own other half: {right[-1]} of {len(found)} ({listed})")
    return int(sum(right) < 0.9 * 2 * len(panel.entries))


if __name__ == "__main__":
    sys.exit(main())
