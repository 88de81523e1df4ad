"""`optbench merge`: combine runs of one suite on different seeds."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from optbench.cli.output import say
from optbench.counting import count
from optbench.execution.merging import merge
from optbench.selection import check_name
from optbench.store import find_run


def merge_runs(runs: Sequence[str], runs_dir: Path, name: str | None, *, force: bool) -> int:
    """Merge the runs and print the location of the result; return the exit code.

    Raises:
        OptbenchError: a run does not exist or cannot be read, or the runs cannot be merged.
    """
    check_name(name)
    made = merge([find_run(run, runs_dir) for run in runs], runs_dir, name, ["optbench", *sys.argv[1:]], force=force)
    seeds = f"{count(len(made.seeds), 'seed')} from {count(len(runs), 'run')}"
    say(f"optbench: {made.path}: {made.trials}, {seeds}; optbench report {shlex.quote(str(made.path))}")
    return 0
