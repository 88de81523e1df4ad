"""Twins in a run's report: the distance between two optimizers in weight space during training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from optbench.report.document import Block, Cell, Heading, Items, Table, columns, seeds_cell
from optbench.report.numbers import decimals
from optbench.report.spread import Spread, SpreadText
from optbench.studies.twins.statistics import Moment, Twins, evenly

TITLE = "Twins"
METRIC = "weight_distance"
COLUMNS = 5
"""Number of columns with distances: at the first and last evaluations, and at the three quarter points between them."""
MOST_DIGITS = 6
MEANING = (
    "Distance between the weights of the two optimizers, divided by the mean of their distances from the common "
    "start: 0 for the same weights, √2 if both moved equally far and at right angles. Last: the last evaluation that "
    "both trials of a seed have."
)


def twin_blocks(found: Sequence[Twins], several: bool, spread_text: SpreadText) -> Iterable[Block]:
    """Yield a table for each experiment and model with twins."""
    if not found:
        return
    yield Heading(TITLE)
    for run, experiment, model in dict.fromkeys(_place(twins) for twins in found):
        here = [twins for twins in found if _place(twins) == (run, experiment, model)]
        where = f"{run}, {experiment}, {model}" if several else f"{experiment}, {model}"
        if shown := [twins for twins in here if twins.distances]:
            yield _table(shown, where, spread_text)
        if missing := [f"{where}: no distance between {twins.label}: {twins.reason}" for twins in here if twins.reason]:
            yield Items(tuple(missing), "warning")
    if sizes := {twins.size for twins in found if twins.distances}:
        yield Items((MEANING, accuracy(sizes)), "quiet")


def accuracy(sizes: Iterable[int]) -> str:
    """Return a sentence that states the relative error of distances, 1/√(2K), for the smallest sketch size K."""
    fewest = min(sizes)
    share = 100 / math.sqrt(2 * fewest)
    return f"Distances are estimated from sketches of {fewest:,} numbers, with an error of about {share:.0f}%."


def place_text(place: Moment, tasks: int) -> str:
    """Format a place as `step 469`, or as `task 2, step 469` if there are several tasks."""
    task, step = place
    return f"step {step}" if tasks == 1 else f"task {task}, step {step}"


def task_count(found: Iterable[Twins]) -> int:
    """Return the number of the last task on which any of the twins have a distance; 1 if there is none."""
    return max((task for twins in found for task, _ in twins.places), default=1)


def _place(twins: Twins) -> tuple[str, str, str]:
    return twins.results.run.id, twins.experiment, twins.model


def _table(shown: Sequence[Twins], where: str, spread_text: SpreadText) -> Table:
    tasks = task_count(shown)
    places = evenly(_reached(shown), COLUMNS)
    ends = {max(distances) for twins in shown for distances in twins.distances.values()}
    last = f"last\n{place_text(ends.pop(), tasks)}" if len(ends) == 1 else "last\nshared"
    between = ("\n".join(["", *place_text(place, tasks).split(", ")][-2:]) for place in places[:-1])
    titles = columns("\ntwins", "\nseeds", *between, last, texts=1)
    rows = []
    for twins in shown:
        values = [*(twins.at(place) for place in places[:-1]), twins.last]
        count, digits = len(twins.distances), digits_of(values)
        cells = [Cell(_text(found, count, digits, spread_text)) for found in values]
        rows.append((Cell(twins.label), seeds_cell(count, twins.planned), *cells))
    return Table(f"{where}: distance between twins", titles, tuple(rows), keys=2)


def _reached(shown: Sequence[Twins]) -> Iterable[Moment]:
    """Return the places at which at least half of all seeds have a distance; other columns would be nearly empty."""
    reached = Counter(place for twins in shown for distances in twins.distances.values() for place in distances)
    seeds = sum(len(twins.distances) for twins in shown)
    return (place for place, count in reached.items() if 2 * count >= seeds)


def digits_of(values: Iterable[Sequence[float]]) -> int:
    """Return the number of decimals for a row: enough for two significant digits of its smallest mean, if possible."""
    means = [fmean(found) for found in values if found]
    smallest = min((mean for mean in means if mean > 0), default=1.0)
    return min(MOST_DIGITS, max(decimals(METRIC), 1 - math.floor(math.log10(smallest))))


def _text(values: Sequence[float], count: int, digits: int, spread_text: SpreadText) -> str:
    """Format the spread of `values`, followed by the number of values if it is neither 0 nor `count`."""
    text = spread_text(Spread.of(values), digits)
    return text if len(values) in (0, count) else f"{text} (n={len(values)})"
