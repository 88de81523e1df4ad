"""Datasets derived from the dataset named by the setting `of`: a subset of it, or a modified copy.

A derived dataset is the same for every trial of a suite; its random draws depend only on its `seed`. Validation data
are held out of the training half and are therefore changed in the same way.

Legend: N examples, C classes, H rows and W columns of an image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from optbench.data.corruption import Corruption, corrupt
from optbench.data.settings import DatasetSettings
from optbench.errors import DataError
from optbench.kinds import Whole
from optbench.late import torch
from optbench.streams import generator

if TYPE_CHECKING:
    from torch import Tensor

    from optbench.data.dataset import Dataset, Split

Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
Label = Annotated[Whole, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def classes(*, of: DatasetSettings, keep: Annotated[tuple[Label, ...], Field(min_length=1)]) -> Dataset:
    """Some classes of another dataset, numbered from 0 in the order of `keep`"""
    base = _labelled("classes", of)
    if len(set(keep)) < len(keep) or max(keep) >= base.classes:
        raise DataError(f"classes: keep: expected distinct classes below {base.classes}, got {list(keep)}")
    number = torch.full((base.classes,), -1)
    number[list(keep)] = torch.arange(len(keep))

    def kept(half: Split, name: str) -> Split:
        chosen = _select(half, (number[half.targets] >= 0).nonzero().squeeze(1), f"classes: {name}")
        return replace(chosen, targets=number[chosen.targets], cues=None)

    train, test = kept(base.train, "train"), kept(base.test, "test")
    return replace(base, name=f"classes of {base.name}", train=train, test=test, classes=len(keep))


def imbalanced(*, of: DatasetSettings, ratio: Annotated[float, Field(ge=1)] = 100.0, seed: Seed = 0) -> Dataset:
    """Another dataset with a decreasing number of training examples per class (first to last: `ratio` : 1)

    Class c of C keeps round(n · ratio^(-c / (C-1))) training examples, but at least one, drawn at random, where n is
    the size of the smallest class. Before rounding, the sizes form a geometric sequence (Cui et al. 2019,
    arXiv:1901.05555). The test half is unchanged.
    """
    base = _labelled("imbalanced", of)
    counts = torch.bincount(base.train.targets, minlength=base.classes)
    if (smallest := int(counts.min())) == 0:
        absent = int(counts.argmin())
        raise DataError(f"imbalanced: of: expected training examples of every class, got none of class {absent}")
    stream, kept = generator(seed, None, "imbalanced"), []
    for label in range(base.classes):
        size = max(1, round(smallest * ratio ** (-label / max(1, base.classes - 1))))
        own = (base.train.targets == label).nonzero().squeeze(1)
        kept.append(own[torch.randperm(len(own), generator=stream)[:size]])
    train = _select(base.train, torch.cat(kept).sort().values, "imbalanced: train")
    return replace(base, name=f"imbalanced {base.name}", train=train)


def noisy_labels(*, of: DatasetSettings, share: Share = 0.2, seed: Seed = 0) -> Dataset:
    """Another dataset with a share of wrong training labels

    Each of exactly round(share · N) training labels is replaced with another class, drawn uniformly (symmetric noise).
    The test half is unchanged.
    """
    base, stream = _labelled("noisy-labels", of), generator(seed, None, "noisy-labels")
    if base.classes < 2:
        raise DataError("noisy-labels: of: expected at least 2 classes, got 1")
    targets = base.train.targets.clone()
    wrong = torch.randperm(len(targets), generator=stream)[: round(share * len(targets))]
    targets[wrong] = _others(targets[wrong], base.classes, stream)
    return replace(base, name=f"noisy-labels {base.name}", train=replace(base.train, targets=targets))


def spurious_patch(
    *,
    of: DatasetSettings,
    probability: Share = 0.95,
    size: Annotated[Whole, Field(ge=1)] = 3,
    test: Literal["moved", "independent"] = "moved",
    seed: Seed = 0,
) -> Dataset:
    """Images with a bright patch whose position correlates with the label in the training half only

    Each class has a position at the upper or lower edge (or in a grid, if there are too many classes for two edges).
    With probability `probability`, the patch of a training image is at the position of the image's own class, otherwise
    at the position of another class. In the test half, it is at the position of another class (`moved`), or of a class
    drawn independently of the label (`independent`). `Split.cues` holds the class indicated by the patch, for the
    metric `cue_following`.
    """
    base, stream = _labelled("spurious-patch", of), generator(seed, None, "spurious-patch")
    _check_images("spurious-patch", base)
    if base.classes < 2:
        raise DataError("spurious-patch: of: expected at least 2 classes, got 1")
    inputs, targets = base.train.inputs, base.train.targets
    brightest = 255 if inputs.dtype == torch.uint8 else float(inputs.max())
    corners = _places(base.classes, inputs.shape[-2], inputs.shape[-1], size)
    follows = torch.rand(len(targets), generator=stream) < probability
    cues = torch.where(follows, targets, _others(targets, base.classes, stream))
    train = replace(base.train, inputs=_patched(inputs, corners[cues], size, brightest), cues=cues)
    if test == "moved":
        cues = _others(base.test.targets, base.classes, stream)
    else:
        cues = torch.randint(base.classes, (len(base.test),), generator=stream)
    moved = replace(base.test, inputs=_patched(base.test.inputs, corners[cues], size, brightest), cues=cues)
    return replace(base, name=f"spurious-patch {base.name}", train=train, test=moved)


def corrupted(*, of: DatasetSettings, corruption: Corruption, seed: Seed = 0) -> Dataset:
    """Another dataset with every test image corrupted"""
    base = _labelled("corrupted", of)
    _check_images("corrupted", base)
    inputs = corrupt(base.test.inputs, corruption, generator(seed, None, f"corrupted/{corruption}"))
    return replace(base, name=f"corrupted {base.name}", test=replace(base.test, inputs=inputs))


def _labelled(kind: str, of: DatasetSettings) -> Dataset:
    """Load the dataset named by `of`; raise DataError if each example has several targets."""
    from optbench.data.loading import loaded

    found = loaded(of)
    if found.train.targets.ndim > 1:
        raise DataError(f"{kind}: of: expected one target for each example, got one for each position")
    return found


def _check_images(kind: str, base: Dataset) -> None:
    if base.train.inputs.ndim != 4 or base.vocabulary is not None:
        shape = tuple(base.train.inputs.shape[1:])
        raise DataError(f"{kind}: of: expected images of shape (C, H, W), got inputs of shape {shape}")


def _select(half: Split, index: Tensor, what: str) -> Split:
    if not len(index):
        raise DataError(f"{what}: expected at least one example, got none")
    cues = None if half.cues is None else half.cues[index]
    return replace(half, inputs=half.inputs[index], targets=half.targets[index], cues=cues)


def _others(labels: Tensor, classes: int, stream: torch.Generator) -> Tensor:
    """Draw, for each of the labels (N,), one of the other classes uniformly at random."""
    return (labels + torch.randint(1, classes, labels.shape, generator=stream)) % classes


def _places(classes: int, height: int, width: int, size: int) -> Tensor:
    """Return the row and column of the upper left corner of each class's patch, (C, 2); patches do not overlap.

    Raises:
        DataError: there is not enough space.
    """
    most_columns, most_rows = width // size, height // size
    columns = min(-(-classes // 2), most_columns)
    rows = -(-classes // columns) if columns else 0
    if not columns or rows > most_rows:
        fits = f"got room for {most_rows * most_columns} of {size} × {size}"
        raise DataError(f"spurious-patch: size: expected room for {classes} patches in {height} × {width}, {fits}")
    label = torch.arange(classes)
    row, column = label // columns, label % columns
    return torch.stack([row * (height - size) // max(1, rows - 1), _middle(column, columns, width, size)], 1)


def _middle(column: Tensor, columns: int, width: int, size: int) -> Tensor:
    """Return the first pixel of a patch that is centred in one of `columns` equal parts of the width."""
    return ((2 * column + 1) * width - columns * size) // (2 * columns)


def _patched(images: Tensor, corners: Tensor, size: int, value: float) -> Tensor:
    """Return images (N, C, H, W), each with a square of `value` whose upper left corner is in `corners`, (N, 2)."""
    offset = torch.arange(size)
    rows, columns = (corners[:, i, None] + offset for i in (0, 1))
    found = images.clone()
    # With the channel axis between the indices (N, 1, 1), (N, s, 1) and (N, 1, s), the indexed axes come first.
    found[torch.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None, :]] = value
    return found
