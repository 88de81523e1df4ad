"""Progress of a run on standard error: a live table on a terminal, or a line per cohort, or only warnings."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from optbench.cli.progress import Tracker, TrialGroup, duration
from optbench.counting import count
from optbench.errors import escaped
from optbench.execution.schedule import Plan
from optbench.execution.view import View
from optbench.plan import Trial
from optbench.stats.power import shortage_text, suite_shortages
from optbench.store.tables import TrialRow

if TYPE_CHECKING:
    from optbench.engine import Progress

BAR_WIDTH = 24
ROOM_BELOW = 4
"""Number of terminal lines reserved for the bar, the table's heading and the cursor."""


@contextlib.contextmanager
def view_for(stream: TextIO, *, quiet: bool, debug: bool) -> Iterator[QuietView]:
    """Yield the view for a stream: only warnings if `quiet`, else a live table on a terminal and lines elsewhere."""
    console = Console(file=stream)
    # a terminal that cannot move its cursor (TERM=dumb) would print every frame
    moves = console.is_terminal and not console.is_dumb_terminal
    kind = QuietView if quiet else LiveView if moves else LineView
    with contextlib.closing(kind(stream, debug=debug)) as view:
        yield view


class _Console(Console):
    """A console that becomes silent if its reader has closed the stream; rich's own console would exit."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class QuietView(View):
    """A view that shows only warnings and, with `debug`, tracebacks; the base class of the other views."""

    def __init__(self, stream: TextIO, *, debug: bool = False) -> None:
        self.console = _Console(file=stream)
        self.debug = debug
        self.path: Path | None = None
        """Run directory; None until the run has started."""
        self.tracker: Tracker | None = None
        self.counts_seeds = True
        """Whether to warn if the suite's comparisons and claims have too few seeds."""

    def started(self, plan: Plan, path: Path, device: str, jobs: int) -> None:
        self.path = path
        self.tracker = Tracker(plan, time.monotonic)
        if self.counts_seeds and (shortages := suite_shortages(plan.suite, plan.trials)):
            self._print(f"optbench: warning: {shortage_text(shortages)}")

    def progress(self, progress: Progress) -> None:
        assert self.tracker is not None
        self.tracker.progress(progress)

    def finished(self, rows: Sequence[tuple[Trial, TrialRow]]) -> None:
        assert self.tracker is not None
        self.tracker.finished(rows)

    def warning(self, text: str) -> None:
        self._print(f"optbench: warning: {text}")

    def details(self, text: str) -> None:
        if self.debug:
            self._print(text)

    def close(self) -> None:
        """Restore the terminal."""

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a log on a full disk must not end a run
            # soft wrap keeps a line of a log file on one line; Text does not interpret brackets as markup
            lines = [escaped(line) for line in text.expandtabs().split("\n")]  # errors may contain control characters
            self.console.print(Text("\n".join(lines)), soft_wrap=True)


class LineView(QuietView):
    """A view that prints a line per finished cohort, for logs."""

    def started(self, plan: Plan, path: Path, device: str, jobs: int) -> None:
        super().started(plan, path, device, jobs)
        self._print(heading(plan, path, device, jobs))

    def finished(self, rows: Sequence[tuple[Trial, TrialRow]]) -> None:
        super().finished(rows)
        assert self.tracker is not None
        self._print(cohort_line(rows, self.tracker))
        for line in failures(rows):
            self._print(line)

    def message(self, text: str) -> None:
        self._print(text)


class LiveView(QuietView):
    """A view that shows a table of all trial groups below a progress bar."""

    def __init__(self, stream: TextIO, *, debug: bool = False) -> None:
        super().__init__(stream, debug=debug)
        self._live = Live(console=self.console, refresh_per_second=8, redirect_stdout=False, redirect_stderr=False)
        self._spinner = Spinner("dots")

    def started(self, plan: Plan, path: Path, device: str, jobs: int) -> None:
        super().started(plan, path, device, jobs)
        self._print(heading(plan, path, device, jobs))
        self._live.start()
        self._show()

    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        self._show()

    def finished(self, rows: Sequence[tuple[Trial, TrialRow]]) -> None:
        super().finished(rows)
        for line in failures(rows):
            self._print(line)
        self._show()

    def message(self, text: str) -> None:
        self._print(text)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the terminal was closed
            self._live.stop()

    def _show(self) -> None:
        assert self.tracker is not None
        # a new picture for every event, so that the refreshing thread never reads data while they change
        self._live.update(picture(self.tracker, self.console.height - ROOM_BELOW, self._spinner))


def heading(plan: Plan, path: Path, device: str, jobs: int) -> str:
    """Return a line that states what will be trained, on which device, and where results are stored."""
    known = len(plan.done & {trial.id for trial in plan.trials})
    already = f" ({known} of them already done)" if known else ""
    processes = count(jobs, "process")
    return f"{plan.suite.name}: {plan.count}{already} on {device}, {processes}; results in {path}"


def cohort_line(rows: Sequence[tuple[Trial, TrialRow]], tracker: Tracker) -> str:
    """Format a line such as `permuted-mnist mlp sgd, momentum: 5 trials done (1 diverged), 17/90, about 3 min left`."""
    first = rows[0][0]
    finished = f"{count(len(rows), 'trial')} done"
    bad = Counter(row.status for _, row in rows if row.status != "ok")
    ended = f" ({', '.join(f'{n} {status}' for status, n in sorted(bad.items()))})" if bad else ""
    left = tracker.left
    guess = f", about {duration(left)} left" if left else ""
    names = ", ".join(dict.fromkeys(trial.optimizer for trial, _ in rows))
    return f"{first.experiment} {first.model} {names}: {finished}{ended}, {tracker.done}/{tracker.total}{guess}"


def failures(rows: Sequence[tuple[Trial, TrialRow]]) -> list[str]:
    """Return a line for each distinct error in a cohort, naming the first trial that failed with it."""
    seen: dict[tuple[str | None, str | None], tuple[Trial, int]] = {}
    for trial, row in rows:
        if row.status == "failed":
            key = (row.error_type, row.error_message)
            first, times = seen.get(key, (trial, 0))
            seen[key] = (first, times + 1)
    return [
        f"failed: {trial.id}{f' and {times - 1} more' if times > 1 else ''}: {kind}: {' '.join((text or '').split())}"
        for (kind, text), (trial, times) in seen.items()
    ]


def picture(tracker: Tracker, height: int, spinner: RenderableType) -> RenderableType:
    """Return the progress bar and, below it, the trial groups.

    If not all groups fit in `height` lines, those in training come first, and the groups left out are counted.
    """
    left = tracker.left
    remaining = f"about {duration(left)} left" if left is not None else "time left: too early to say"
    bar = Table.grid(padding=(0, 1))
    for _ in range(4):
        bar.add_column(no_wrap=True, overflow="ellipsis")
    bar.add_row(
        spinner,
        ProgressBar(total=1.0, completed=tracker.fraction, width=BAR_WIDTH),
        f"{tracker.done}/{count(tracker.total, 'trial')}",
        f"{duration(tracker.elapsed)} elapsed, {remaining}",
    )
    groups = list(tracker.groups)
    rest = 0
    if len(groups) > height:
        groups.sort(key=lambda group: (not group.training, group.done == group.total))  # stable: suite order
        rest = len(groups) - max(1, height - 1)
        groups = groups[: max(1, height - 1)]
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "left", "right", "left", "left"):
        table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
    table.add_row(*(Text(t, style="dim") for t in ("experiment", "model", "optimizer", "trials", "task", "accuracy")))
    for group in groups:
        table.add_row(*_cells(group))
    return Group(
        bar, table, *([Text(f"and {rest} more", style="dim", no_wrap=True, overflow="ellipsis")] if rest else [])
    )


def _cells(group: TrialGroup) -> list[Text]:
    slowest, accuracy = group.slowest, group.accuracy
    bad = ", ".join(f"{n} {what}" for n, what in ((group.diverged, "diverged"), (group.failed, "failed")) if n)
    waiting = "done" if group.done == group.total else "waiting"
    task = f"{slowest.task}/{group.tasks}" if slowest is not None else waiting
    style = "dim" if slowest is None else ""
    return [
        *(Text(part, style=style) for part in group.name),
        Text(f"{group.done}/{group.total}", style=style),
        Text(task, style=style),
        Text(bad if bad else f"{accuracy:.3f}" if accuracy is not None else "", style="yellow" if bad else style),
    ]
