"""`optbench.fingerprint`: the page about the kind of solution that an optimizer finds, as an object."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from optbench.counting import count, kept
from optbench.errors import UsageError
from optbench.execution.session import Options
from optbench.interface.arguments import suggesting
from optbench.interface.given import seeds_of, written
from optbench.interface.results import Run, read_run
from optbench.interface.run import failures
from optbench.interface.watching import watching
from optbench.studies.fingerprint import html, panel, records, terminal
from optbench.studies.fingerprint.drawing import check_file, draw, save
from optbench.studies.fingerprint.standing import Fingerprint as Drawn
from optbench.studies.fingerprint.training import Wanted, check_unused, train
from optbench.studies.fingerprint.words import sentences
from optbench.targets import Objects, using

WIDTH = 100
"""Width of the page as text, in characters."""


class Fingerprint:
    """The kind of solution that an optimizer finds: a table, the nearest neighbours, sentences, and a page to save."""

    def __init__(self, found: Drawn, run: Run) -> None:
        self._found = found
        self.run = run
        """The run from which the page was drawn."""

    @property
    def table(self) -> pd.DataFrame:
        """One row per strip: value, interval, place in the panel, verdicts against AdamW and SGD, and panel values."""
        rows = [{**row, **{f"panel_{k}": v for k, v in row["panel"].items()}} for row in records.rows(self._found)]
        return pd.DataFrame(rows).drop(columns="panel")

    @property
    def neighbours(self) -> pd.DataFrame:
        """One row per optimizer of the panel, nearest first.

        Columns: distance with its interval, share of resamples in which the optimizer is the nearest, and number of
        strips compared.
        """
        columns = ["optimizer", "distance", "low", "high", "nearest_share", "strips"]
        return pd.DataFrame(records.record(self._found)["neighbours"], columns=columns)

    @property
    def words(self) -> str:
        """A description in sentences: the nearest neighbour and the verdicts."""
        return " ".join(one.text for one in sentences(self._found))

    def save(self, path: str | Path) -> None:
        """Write the page to a file: .html, .json, .png, .svg or .pdf.

        Raises:
            UsageError: the path has another suffix.
            StoreError: the file cannot be written.
        """
        check_file(Path(path), str(path))
        save(self._found, Path(path))

    def __repr__(self) -> str:
        return f"Fingerprint({self._found.name!r}, {count(self._found.seeds, 'seed')}): {self.words}"

    def __str__(self) -> str:
        console = Console(width=WIDTH, file=None, force_terminal=False, color_system=None)
        with console.capture() as captured:
            terminal.show(self._found, console)
        return captured.get()

    def _repr_html_(self) -> str:
        return html.fragment(self._found)


@suggesting
def fingerprint(
    optimizer: str | Callable[..., Any] | None = None,
    *,
    run: str | Path | Run | None = None,
    set: Mapping[str, Any] | None = None,
    seeds: int | Sequence[int] | None = None,
    quick: bool = False,
    device: str = "auto",
    jobs: int | None = None,
    runs_dir: str | Path = "runs",
    name: str | None = None,
    progress: bool = False,
) -> Fingerprint:
    """Return a page on the kind of solution that an optimizer finds, next to those of known optimizers.

    This function does the same as `optbench fingerprint`.

    Args:
        optimizer: the optimizer to tune and train: a class, a function, a target or a registered name. With `run`: the
            name of one of the run's optimizers, required if the run has several.
        run: a finished run of the suite `fingerprint`, to be shown without further training.
        set: hyper-parameters. If they include `lr`, the learning rate is not tuned.
        seeds: how many of the panel's seeds to use, or a list of them; None for all ten. Verdicts require all ten.
        quick: whether to use three seeds and a learning rate tuned on one seed, for a first look without verdicts.
        device: the device, as for `--device` of `optbench run`.
        jobs: number of worker processes.
        runs_dir: the folder that holds the runs.
        name: the run's id; the id of the tuning run ends in `-tune`.
        progress: whether to show progress on standard error.

    Raises:
        OptbenchError: the optimizer, a setting, the device, the directory or the run is invalid.
        KeyboardInterrupt: training was interrupted; finished trials are kept.
    """
    if run is not None:
        if optimizer is not None and not isinstance(optimizer, str):
            raise UsageError("optimizer: expected the name of an optimizer of the run, got an object")
        given = {"set": set, "seeds": seeds, "quick": quick or None, "name": name}
        if of_training := [argument for argument, value in given.items() if value is not None]:
            raise UsageError(f"run: a finished run is drawn as it is; it cannot be combined with {of_training[0]}")
        drawn_from = read_run(run, runs_dir)
        return Fingerprint(draw(drawn_from.path, optimizer), drawn_from)
    if optimizer is None:
        raise UsageError("fingerprint: expected 'optimizer', 'run' or both, got neither")
    wanted_seeds = seeds_of(seeds)
    panel.check_seeds(panel.shipped(), wanted_seeds, "seeds")
    if name is not None:
        check_unused(Path(runs_dir), name)
    objects = Objects()
    target = optimizer if isinstance(optimizer, str) else objects.target(optimizer)
    settings = [f"{key}={json.dumps(value)}" for key, value in written(set or {}, objects, "set").items()]
    wanted = Wanted(target, tuple(settings), wanted_seeds, quick)
    options = Options(
        device=device,
        runs_dir=Path(runs_dir),
        name=name,
        jobs=jobs,
        command=(f"optbench.fingerprint({target!r})",),
    )
    notes: list[str] = []
    with using(objects.sources), watching(notes, progress=progress) as view:
        trained = train(wanted, options, view)
    if trained.interrupted:
        raise KeyboardInterrupt(f"{kept(len(read_run(trained.run).table('trials')))} in {trained.run}")
    found = read_run(trained.run)
    for text in (*notes, *failures(found)):
        warnings.warn(text, stacklevel=3)  # the caller's line, skipping `suggesting`
    return Fingerprint(draw(trained.run, trained.optimizer), found)
