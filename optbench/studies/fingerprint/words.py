"""The fingerprint in sentences. Comparisons with other optimizers state only verdicts.

A sentence stores the verdicts that it states. A test checks that every verdict against a reference is in a sentence,
and that no sentence states more than its verdicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optbench.counting import count
from optbench.report.numbers import estimate
from optbench.stats.power import MIN_PAIRS
from optbench.stats.verdict import Verdict
from optbench.studies.fingerprint.neighbours import Neighbour
from optbench.studies.fingerprint.standing import Fingerprint, Judged, on
from optbench.studies.fingerprint.strips import STRIPS

SURE = 0.95
"""The share of bootstrap samples that agree on the nearest optimizer is stated only if it is below this value."""

LARGEST = 3
"""Number of strips named as those that contribute most to a distance."""


@dataclass(frozen=True)
class Sentence:
    """One sentence and the verdicts that it states."""

    text: str
    verdicts: tuple[Judged, ...] = ()


def sentences(found: Fingerprint) -> list[Sentence]:
    """Return the sentences about a fingerprint, in order."""
    return [*_not_learnt(found), *_nearest(found), *(one for judged in found.references for one in _against(judged))]


def _not_learnt(found: Fingerprint) -> Iterator[Sentence]:
    for experiment, what in found.not_learnt.items():
        yield Sentence(f"{on(experiment)}, it {what}; the strips measured there have no values.")


def _nearest(found: Fingerprint) -> Iterator[Sentence]:
    if not found.neighbours:
        yield Sentence("Too few strips have values to determine a nearest neighbour.")
        return
    first, *others = found.neighbours
    if found.seeds < MIN_PAIRS:  # resamples of so few seeds are too similar to show how certain the result is
        sure = f", as far as {count(found.seeds, 'seed')} can tell,"
    else:
        sure = "" if first.nearest >= SURE else f", in {100 * first.nearest:.0f}% of resamples of the seeds,"
    then = f", followed by {others[0].name} ({others[0].distance:.2f})" if others else ""
    text = f"The nearest in the panel{sure} is {first.name} (distance {first.distance:.2f}){then}."
    yield Sentence(text)
    if largest := _largest(first):
        yield Sentence(f"The strips that contribute most to this distance are {_listed(largest)}.")
    if not found.has_verdicts:
        return
    judged = found.judged[first.name]
    same = tuple(one for one in judged if one.same)
    if same and first.name not in {one[0].other for one in found.references}:
        identical = "identical to" if all(one.identical for one in judged) else "like"
        where = f"all {len(STRIPS)} strips" if len(same) == len(STRIPS) else f"{len(same)} of {len(STRIPS)} strips"
        yield Sentence(f"It is {identical} {first.name} in {where}.", same)


def _largest(neighbour: Neighbour) -> list[str]:
    """Return the strips with the largest shares of the squared distance, e.g. `dormant units (31%)`."""
    shares = sorted(zip(neighbour.shares, STRIPS, strict=True), key=lambda pair: -pair[0])
    return [f"{strip.label} ({100 * share:.0f}%)" for share, strip in shares[:LARGEST] if share > 0]


def _against(judged: Sequence[Judged]) -> Iterator[Sentence]:
    """Yield sentences on one reference: the strips that differ, are equal, are open, or cannot be compared."""
    other = judged[0].other
    differing = tuple(one for one in judged if one.differs)
    same = tuple(one for one in judged if one.same)
    unsettled = tuple(one for one in judged if one.verdict is Verdict.NO_EVIDENCE)
    left_out = [one for one in judged if one.verdict is Verdict.NOT_COMPARABLE]
    if differing:
        yield Sentence(f"Compared with {other}, it {_listed([_phrase(one) for one in differing])}.", differing)
    if same:
        whole = len(same) == len(judged)
        identical = whole and all(one.identical for one in same)
        where = f"all {len(judged)} strips" if whole else _listed([one.strip.label for one in same])
        yield Sentence(f"It is {'identical to' if identical else 'like'} {other} in {where}.", same)
    if unsettled:
        where = _listed([one.strip.label for one in unsettled])
        yield Sentence(f"These seeds do not show whether it differs from {other} in {where}.", unsettled)
    if empty := tuple(one for one in left_out if not one.result.n):
        where = _listed([one.strip.label for one in empty])
        yield Sentence(f"It cannot be compared with {other} in {where}, where one of the two has no values.", empty)
    if rest := tuple(one for one in left_out if one.result.n):
        where = _listed([one.strip.label for one in rest])
        why = "; ".join(dict.fromkeys(one.judgement.reason for one in rest))
        yield Sentence(f"It cannot be compared with {other} in {where}: {why}.", rest)


def _phrase(one: Judged) -> str:
    """Return a phrase such as `forgets less (−0.036 [−0.047, −0.026])`."""
    difference = one.result.difference
    assert difference is not None
    said = one.strip.more if difference > 0 else one.strip.less
    size = estimate(difference, one.result.interval, one.strip.digits)
    return f"{said} ({size})"


def _listed(parts: Sequence[str]) -> str:
    """Join words: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
