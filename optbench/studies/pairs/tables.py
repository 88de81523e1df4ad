"""Paired solutions in a run's report: one line for each pair and metric, with the nulls of the two arms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from optbench.counting import count
from optbench.report.document import Block, Cell, Heading, Items, Paragraph, Table, columns, seeds_cell
from optbench.report.numbers import UNDEFINED, decimals, fixed
from optbench.report.spread import Spread, SpreadText
from optbench.studies.pairs.statistics import SeedValues, SolutionPair

MANY_PAIRS = 12
"""Maximum number of pairs shown per experiment and model; further pairs are counted, and included in CSV and JSON."""
MANY_NOTES = 6
"""Maximum number of reasons given for undefined values; further reasons are counted."""
CHANCE = "subspace_overlap_chance"
"""A metric with the same value for every pair on a model, shown next to the overlap rather than on a separate line."""

TITLES = {
    "linear_cka": "CKA",
    "linear_cka_debiased": "CKA, debiased",
    "subspace_overlap": "overlap",
    "prediction_disagreement": "disagreement",
    "loss_barrier": "loss barrier",
    "accuracy_barrier": "accuracy barrier",
    "weight_distance": "weight distance",
    "displacement_angle": "angle (degrees)",
}

LEGENDS = {
    "linear_cka": "CKA: linear alignment of the features on all test data, 1 if equal up to rotation and scale",
    "subspace_overlap": "overlap: overlap of the subspaces of the 10 leading feature directions; chance: overlap of "
    "random subspaces",
    "prediction_disagreement": "disagreement: share of all test examples that the two solutions label differently",
    "loss_barrier": "loss barrier, accuracy barrier: how far the training loss rises above, and the test accuracy "
    "falls below, the straight line between the values of the two solutions (11 points; 1,000 examples of every task)",
    "weight_distance": "weight distance: distance between the two solutions, divided by the mean of their distances "
    "from the common start",
    "displacement_angle": "angle: angle between the displacements of the two solutions from the common start",
}


def pair_blocks(pairs: Sequence[SolutionPair], several: bool, spread_text: SpreadText) -> Iterable[Block]:
    """Yield the results of the pairs that suites request; nothing if there are none."""
    if not pairs:
        return
    yield Heading("One solution against another")
    places = dict.fromkeys((pair.run, pair.experiment, pair.model) for pair in pairs)
    shown: set[str] = set()
    for run, experiment, model in places:
        here = [pair for pair in pairs if (pair.run, pair.experiment, pair.model) == (run, experiment, model)]
        known = [pair for pair in here if any(_finite(measured.values) for measured in pair.measures.values())]
        where = f"{run}, {experiment}, {model}" if several else f"{experiment}, {model}"
        if known:
            yield _table(known[:MANY_PAIRS], where, spread_text)
            shown |= {name for pair in known[:MANY_PAIRS] for name in pair.measures}
        if len(known) > MANY_PAIRS:
            yield Paragraph(f"and {count(len(known) - MANY_PAIRS, 'more pair')}, included in csv and json", "quiet")
        warnings = list(_warnings(here, known))
        if warnings:
            yield Items(tuple(warnings), "warning")
    if shown:
        yield Paragraph(
            "Each measure compares two solutions with the same seed, which started from the same weights. Its null is "
            "the same measure between two solutions of one optimizer, with the same seed and initial weights but with "
            "the batches in another order. Outside: the number of seeds on which the pair's value is outside the range "
            "of all null values of its two sides.",
            "quiet",
        )
        yield Items(tuple(text for name, text in LEGENDS.items() if name in shown), "quiet")


def _table(pairs: Sequence[SolutionPair], where: str, spread_text: SpreadText) -> Table:
    nulls = ("null of\nthe first", "null of\nthe second", "outside\nthe nulls")
    titles = columns("solutions", "measure", "seeds", "between\nthem", *nulls, texts=2)
    rows = []
    for pair in pairs:
        for name, measured in pair.measures.items():
            if name == CHANCE and "subspace_overlap" in pair.measures:
                continue
            digits = decimals(name)
            values = (measured.values, measured.null_a, measured.null_b)
            texts = (spread_text(Spread.of(known.values()) if known else None, digits) for known in values)
            outside = f"{measured.outside[0]} of {measured.outside[1]}" if measured.outside else UNDEFINED
            seeds = seeds_cell(len(_finite(measured.values)), pair.planned)
            keys = (Cell(pair.label), Cell(_title(name, pair)), seeds)
            rows.append((*keys, *map(Cell, texts), Cell(outside)))
    return Table(f"{where}: one solution against another", titles, tuple(rows), keys=2)


def _title(name: str, pair: SolutionPair) -> str:
    title = TITLES.get(name, name.replace("_", " "))
    chance = _finite(pair.measures[CHANCE].values) if name == "subspace_overlap" and CHANCE in pair.measures else []
    return f"{title} (chance {fixed(chance[0], 2)})" if chance else title


def _warnings(pairs: Sequence[SolutionPair], known: Sequence[SolutionPair]) -> Iterable[str]:
    unknown = [pair for pair in pairs if pair not in known]
    begun = [pair.label for pair in unknown if pair.measures]
    if begun:
        yield f"no defined values for {'; '.join(begun[:MANY_PAIRS])}{_more(begun)}"
    waiting = [pair.label for pair in unknown if not pair.measures]
    if waiting:
        yield f"not compared yet: {'; '.join(waiting[:MANY_PAIRS])}{_more(waiting)}"

    notes = list(dict.fromkeys(note for pair in pairs for note in pair.notes))
    for note in notes[:MANY_NOTES]:
        yield f"undefined: {note}"
    if len(notes) > MANY_NOTES:
        yield f"undefined for {count(len(notes) - MANY_NOTES, 'more reason')}, listed in pairs.parquet"


def _more(labels: Sequence[str]) -> str:
    return f" and {len(labels) - MANY_PAIRS} more" if len(labels) > MANY_PAIRS else ""


def _finite(values: SeedValues) -> list[float]:
    return [value for value in values.values() if math.isfinite(value)]
