"""Remarks on a valid suite: parts without effect, and parts whose effects the suite's author may not expect."""

from __future__ import annotations

from collections.abc import Iterator

from optbench.counting import count
from optbench.suite.document import Document, KeyPath
from optbench.suite.faults import shown_path
from optbench.suite.removals import removal_remarks
from optbench.suite.schema import Suite


def suite_remarks(suite: Suite, document: Document) -> Iterator[str]:
    """Yield the remarks: on removals with further effects, and on settings that have none or may not be meant."""
    yield from removal_remarks(document)
    yield from _unused(suite, document)
    yield from _seed(suite, document)
    yield from _evaluations(suite, document)


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


def _evaluations(suite: Suite, document: Document) -> Iterator[str]:
    """Yield a remark on each evaluation interval that is longer than the task and thus prevents early stopping."""
    for name, experiment in suite.experiments.items():
        protocol = experiment.protocol
        is_given = "evaluate_every" in protocol.model_fields_set
        if is_given and protocol.early_stopping is not None and protocol.evaluate_every > protocol.max_epochs:
            path: KeyPath = ("experiments", name, "protocol", "evaluate_every")
            most, every = f"{protocol.max_epochs:g}", count(protocol.evaluate_every, "epoch")
            what = f"expected at most max_epochs ({most}), got {every}; early stopping has no effect"
            yield f"{document.value_place(path)}: {shown_path(path)}: {what}"
