"""Incompatible combinations of built-in datasets, task sequences and models, recognised by name.

User-defined kinds are tried out before training instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from optbench.data.text import NO_LIMIT, fault_of_text
from optbench.errors import OptbenchError, unknown
from optbench.suite.document import Document, KeyPath
from optbench.suite.faults import Fault, shown_path
from optbench.suite.schema import ExperimentSettings, Suite
from optbench.targets import TEXT, Source

TASKS = {
    "images": ("permuted", "class-incremental", "rotated", "random-labels"),
    "text": ("domains", "permuted-vocabulary"),
}
MODELS = {"images": ("mlp", "cnn", "resnet", "vit"), "text": ("gpt",)}


def fitting_faults(suite: Suite, document: Document) -> Iterator[Fault]:
    """Yield a fault for each task sequence, model or setting that does not fit the dataset, e.g. `cnn` on text."""
    for name, experiment in suite.experiments.items():
        for path, what in _faults(experiment):
            where: KeyPath = ("experiments", name, *path)
            yield Fault(document.value_place(where), f"{shown_path(where)}: {what}")


def _faults(experiment: ExperimentSettings) -> Iterator[tuple[KeyPath, str]]:
    dataset, tasks = experiment.dataset, experiment.tasks
    known = dataset.known
    if not dataset.domains and (known is None or len(known.shape) != 3):
        return
    if (augment := experiment.protocol.augment) is not None:
        if known is None:
            yield ("protocol", "augment"), f"expected images to augment, got the text of {dataset.kind}"
        elif augment.crop >= (side := min(known.shape[1:])):
            yield ("protocol", "augment", "crop"), f"expected less than the images' side ({side}), got {augment.crop}"
    form, other = ("text", "images") if dataset.domains else ("images", "text")
    if tasks.kind in TASKS[other]:
        yield ("tasks", "kind"), f"expected a task sequence for the {form} of {dataset.kind}, got '{tasks.kind}'"
    for name, model in experiment.models.items():
        if model.kind in MODELS[other]:
            yield ("models", name, "kind"), f"expected a model for the {form} of {dataset.kind}, got '{model.kind}'"
    if dataset.domains and tasks.kind in TASKS["text"]:
        order, domain = (tasks.settings.get(key) for key in ("order", "domain"))
        named: list[tuple[KeyPath, str]] = [(("tasks", "domain"), domain)] if domain is not None else []
        named += [(("tasks", "order", i), one) for i, one in enumerate(order)] if isinstance(order, list) else []
        for i, (path, one) in enumerate(named):
            if one not in dataset.domains:
                yield path, unknown("domain", one, dataset.domains)
            elif one in (before for _, before in named[:i]):
                yield path, f"expected each domain once, got '{one}' again"
    if dataset.domains and experiment.protocol.train_examples is not None:
        yield ("protocol", "train_examples"), NO_LIMIT


def text_faults(suite: Suite, document: Document, find: Callable[[str], Source | None]) -> Iterator[Fault]:
    """Yield a fault for each of the user's text files that is missing, unreadable or too short.

    find: as in `load_suite`.
    """
    for name, experiment in suite.experiments.items():
        for domain, path in experiment.dataset.texts.items():
            try:
                source = find(f"{TEXT}{path}")
                fault = source and fault_of_text(source.files[source.main], experiment.dataset.settings["context"])
            except OptbenchError as error:
                fault = str(error)
            if fault is not None:
                where: KeyPath = ("experiments", name, "dataset", "files", domain)
                yield Fault(document.value_place(where), f"{shown_path(where)}: {fault}")
