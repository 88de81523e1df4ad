"""Small datasets of every form (images, vectors, tokens and text) on which models and task sequences are tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from optbench.checks.problem import SMALL, shrunken_mnist
from optbench.data import Dataset, Split
from optbench.data.mnist import embedded_mnist
from optbench.data.windows import Text
from optbench.errors import OptbenchError
from optbench.targets import said

FEATURES, CLASSES, LENGTH, VOCABULARY = 20, 5, 12, 30
Made = TypeVar("Made")


def _images() -> Dataset:
    """Return MNIST digits at full size, large enough for convolutions and pooling."""
    mnist, most = embedded_mnist(), SMALL.examples + SMALL.batch_size
    train, test = (Split(half.inputs[:most], half.targets[:most]) for half in (mnist.train, mnist.test))
    return Dataset("images", train, test, mnist.classes)


def _vectors() -> Dataset:
    draws = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(CLASSES, FEATURES, generator=draws)

    def half(count: int) -> Split:
        targets = torch.arange(count) % CLASSES
        return Split(centres[targets] + torch.randn(count, FEATURES, generator=draws), targets)

    return Dataset("vectors", half(SMALL.examples + SMALL.batch_size), half(SMALL.batch_size), CLASSES)


def _tokens() -> Dataset:
    """Return sequences that count up from a random token.

    The label is 1 if this first token is in the lower half of the vocabulary, and 0 otherwise.
    """
    draws = torch.Generator().manual_seed(0)

    def half(count: int) -> Split:
        first = torch.randint(VOCABULARY, (count, 1), generator=draws)
        return Split((first + torch.arange(LENGTH)) % VOCABULARY, (first[:, 0] < VOCABULARY // 2).long())

    return Dataset("tokens", half(SMALL.examples + SMALL.batch_size), half(SMALL.batch_size), 2, vocabulary=VOCABULARY)


def _text() -> Dataset:
    """Return two text domains for next-token prediction: one counts up, one down, with occasional longer steps."""
    draws = torch.Generator().manual_seed(0)

    def text(step: int) -> Text:
        steps = torch.where(torch.rand(8000, generator=draws) < 0.9, step, 3 * step)
        return Text(*torch.split(steps.cumsum(0) % VOCABULARY, [6400, 800, 800]))

    texts = {"upwards": text(1), "downwards": text(-1)}
    return Dataset.of_texts("text", texts, VOCABULARY, LENGTH, torch.ones(VOCABULARY, dtype=torch.int64))


SAMPLES: Mapping[str, Callable[[], Dataset]] = {
    "images": _images,
    "small images": lambda: shrunken_mnist(SMALL),
    "vectors": _vectors,
    "text": _text,
    "tokens": _tokens,
}


@dataclass(frozen=True)
class Fit(Generic[Made]):
    """The first form of data that fits, the result for it, and the reason for rejecting each earlier form."""

    name: str
    dataset: Dataset
    made: Made
    rejected: Mapping[str, str]

    @property
    def shape(self) -> str:
        """The shape of the inputs, e.g. `(B, 1, 28, 28)`."""
        return f"({', '.join(map(str, ('B', *self.dataset.inputs.shape)))})"


def first_that_fits(make: Callable[[Dataset], Made]) -> Fit[Made] | str:
    """Return the first form of data that `make` accepts, with the result; if `make` accepts none, return the reason."""
    rejected: dict[str, str] = {}
    for name, sample in SAMPLES.items():
        dataset = sample()
        try:
            return Fit(name, dataset, make(dataset), rejected)
        except OptbenchError as error:
            rejected[name] = " ".join(str(error).split())
        except Exception as error:  # a user's code may raise anything
            rejected[name] = said(error)
    found = list(dict.fromkeys(rejected.values()))
    return found[0] if len(found) == 1 else f"for none of {reasons(rejected)}"


def reasons(rejected: Mapping[str, str]) -> str:
    """List rejected forms of data with one reason, e.g. `images, small images; for images: expected vectors`."""
    # An error raised while the code ran is more informative than one about the wrong form of data.
    name, why = min(rejected.items(), key=lambda item: "expected" not in item[1])
    return f"{', '.join(rejected)}; for {name}: {why}"
