"""Remarks on a valid suite: parts without effect, and parts whose effects the suite's author may not expect."""

from __future__ import annotations

from collections.abc import Iterator

from optbench.suite.document import Document
from optbench.suite.removals import removal_remarks
from optbench.suite.schema import Suite


def suite_remarks(suite: Suite, document: Document) -> Iterator[str]:
    """Yield a sentence about each removal with further effects, each unused optimizer and a misleading `seed`."""
    yield from removal_remarks(document)
    yield from _unused(suite, document)
    yield from _seed(suite, document)


def _unused(suite: Suite, document: Document) -> Iterator[str]:
    """Yield a remark on each optimizer that no experiment uses.

    Optimizers of a base are excepted: they can be unused because the extending suite removes an experiment.
    """
    used = {name for experiment in suite.experiments.values() for name in suite.taking_part(experiment)}
    for name in suite.optimizers:
        place = document.key_place(("optimizers", name))
        if name not in used and (place.is_override or place.source == document.sources[-1]):
            form = f"experiments: {{{next(iter(suite.experiments))}: {{optimizers: {{{name}: {{}}}}}}}}"
            yield f"{place}: optimizers.{name}: used by no experiment, so it is not trained; to use it, write {form}"


def _seed(suite: Suite, document: Document) -> Iterator[str]:
    """Yield a remark if an extending file sets `seed` but not `seeds`, because the two are easily confused."""
    seed, seeds = (document.key_place((key,)) for key in ("seed", "seeds"))
    if ("seed",) in document.keys and not seed.is_override and document.is_above(seed, seeds):
        yield f"{seed}: seed: this changes all random numbers, not the seeds of the trials, which are set by 'seeds'"
