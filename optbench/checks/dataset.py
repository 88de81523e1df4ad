"""The dataset contract: valid types, shapes and value ranges, and reproducible content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch

from optbench.checks.finding import Finding, Found, lines
from optbench.data import Dataset, load
from optbench.data.dataset import form_of
from optbench.data.settings import DatasetSettings
from optbench.kinds import DATASETS


class _Subject:
    def __init__(self, settings: DatasetSettings) -> None:
        self.settings = settings

    @cached_property
    def dataset(self) -> Dataset:
        return load(self.settings)


def findings(target: str, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Construct a dataset and check it, then construct it again to check that it is reproducible.

    Raises:
        KindError, ValidationError: the dataset cannot be loaded, or rejects its settings.
    """
    DATASETS.complete(target, settings)
    return lines(_Subject(DatasetSettings.of(target, **settings)), CHECKS)


def _makes(subject: _Subject) -> Found:
    found = subject.dataset
    return "passed", f"'{found.name}': {len(found.train)} training and {len(found.test)} test examples"


def _inputs(subject: _Subject) -> Found:
    inputs = subject.dataset.train.inputs
    vocabulary = f", vocabulary of {subject.dataset.vocabulary}" if subject.dataset.vocabulary else ""
    return "passed", f"{form_of(subject.dataset.train)}, {inputs.min().item():g} to {inputs.max().item():g}{vocabulary}"


def _targets(subject: _Subject) -> Found:
    found = subject.dataset
    counts = found.train.targets.flatten().bincount(minlength=found.classes)
    said = f"{found.classes} classes with {int(counts.min())} to {int(counts.max())} training examples each"
    if (absent := (counts == 0).nonzero().flatten().tolist()) and found.vocabulary is None:
        return "information", f"{said}; class {absent[0]} has none"
    return "passed", said


def _text(subject: _Subject) -> Found:
    found = subject.dataset
    if found.texts is None:
        return "information", "no text domains"
    entropies = found.unigram_entropies()
    said = []
    for domain, text in found.texts.items():
        sizes = " + ".join(str(len(part)) for part in (text.train, text.validation, text.test))
        entropy = f", unigram entropy {entropies[domain]:.3f} bits per byte" if domain in entropies else ""
        said.append(f"{domain} {sizes} tokens{entropy}")
    return "information", "; ".join(said)


def _normalisation(subject: _Subject) -> Found:
    found = subject.dataset
    if found.vocabulary is not None:
        return "information", "tokens are passed to the model unchanged"
    assert found.mean is not None
    assert found.std is not None
    if min(found.std) <= 0:
        return "failed", f"expected standard deviations above 0, got {min(found.std):g}"
    return "passed", f"mean {found.mean[0]:.4g}, standard deviation {found.std[0]:.4g}" + (
        f" (the first of {len(found.mean)})" if len(found.mean) > 1 else ""
    )


def _reproducible(subject: _Subject) -> Found:
    again = load(subject.settings)
    for name in ("train", "test"):
        one, other = getattr(subject.dataset, name), getattr(again, name)
        if not (torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)):
            draw = "draw from torch.Generator().manual_seed(...), and read files in sorted order"
            return "failed", f"{name} differs when made a second time; {draw}"
    return "passed", "bit-identical when made twice"


CHECKS = (
    ("makes a dataset", _makes),
    ("inputs", _inputs),
    ("targets", _targets),
    ("text", _text),
    ("normalisation", _normalisation),
    ("reproducible", _reproducible),
)
