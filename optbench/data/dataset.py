"""A dataset in memory, with unscaled inputs.

Shapes: N examples, T positions of a sequence, n tokens of a text; C channels, H rows, W columns of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optbench.data.statistics import statistics
from optbench.data.windows import Text, consecutive_windows, unigram_entropy
from optbench.errors import DataError


@dataclass(frozen=True)
class InputSpec:
    """The form of one model input.

    Attributes:
        shape: the shape of one input, such as (C, H, W), (D,) or (T,).
        dtype: float32, or int64 for tokens.
        vocabulary: the number of distinct tokens; None for other inputs.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    vocabulary: int | None = None


# compared by identity, because elementwise `==` of tensors has no truth value
@dataclass(frozen=True, eq=False)
class Split:
    """The training or the test half of a dataset, in published order, on the CPU.

    Attributes:
        inputs: uint8 in 0..255, float32, or int64 tokens; (N, ...).
        targets: int64, in 0..classes-1; (N,), or (N, T) with one per position.
        cues: int64, (N,): the class indicated by the spurious cue in each example, for the metric `cue_following`;
            None if there are no cues.
    """

    inputs: Tensor
    targets: Tensor
    cues: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named dataset.

    Attributes:
        name: the name in messages and tables.
        train, test: the two halves.
        classes: the number of classes, which is the width of a model's output; for text, the vocabulary size.
        mean, std: statistics for `normalisation: standard`: one number, or one for each index of an input's first
            axis. uint8 inputs are scaled to [0, 1] first. By default, the statistics of the training inputs, per
            channel for images (C, H, W) and over all values for other inputs. Tokens are not normalised.
        vocabulary: the number of distinct input tokens; by default the number of classes.
        token_bytes: int64, (classes,): the number of bytes of text that each token represents, 1 if tokens are bytes.
            Next-token predictions are then scored in bits per byte: (−Σ log₂ p(target)) / (Σ token_bytes[target]).
            None if tokens are not text.
        texts: the complete text of each domain, from which task sequences draw windows; see `of_texts`.

    Raises:
        DataError: the halves are inconsistent with each other, or an attribute is invalid.

    Example:
        >>> inputs, targets = torch.rand(20, 3), torch.arange(20) % 2
        >>> found = Dataset("points", Split(inputs[:15], targets[:15]), Split(inputs[15:], targets[15:]), classes=2)
        >>> found.inputs.shape
        (3,)
    """

    name: str
    train: Split
    test: Split
    classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    vocabulary: int | None = None
    token_bytes: Tensor | None = None
    texts: Mapping[str, Text] | None = None

    @staticmethod
    def of_texts(
        name: str, texts: Mapping[str, Text], vocabulary: int, context: int, token_bytes: Tensor | None = None
    ) -> Dataset:
        """Build a dataset from one or more text domains, with windows of `context` tokens and next-token targets.

        The two halves are the consecutive windows of the training and test sections, domain by domain.

        Raises:
            DataError: a section is shorter than one window, or contains tokens outside 0..vocabulary-1.
        """
        if (fault := fault_of_texts(texts, vocabulary, context)) is not None:
            raise DataError(f"dataset {name}: texts{fault}")
        halves = {}
        for part in ("train", "test"):
            windows = torch.cat([consecutive_windows(getattr(text, part), context) for text in texts.values()])
            halves[part] = Split(windows[:, :-1], windows[:, 1:])
        train, test = halves["train"], halves["test"]
        return Dataset(name, train, test, vocabulary, token_bytes=token_bytes, texts=dict(texts))

    def __post_init__(self) -> None:
        if not isinstance(self.classes, int) or isinstance(self.classes, bool) or self.classes < 1:
            raise DataError(
                f"dataset {self.name}: classes: expected a whole number of at least 1, got {self.classes!r}"
            )
        for half in ("train", "test"):
            if not isinstance(split := getattr(self, half), Split):
                raise DataError(f"dataset {self.name}: {half}: expected an optbench.Split, got {type(split).__name__}")
            if (found := fault_of(split, self.classes, self.vocabulary)) is not None:
                raise DataError(f"dataset {self.name}: {half}{found}")
        if (a := form_of(self.train)) != (b := form_of(self.test)):
            raise DataError(f"dataset {self.name}: test: expected the form of the training examples, {a}, got {b}")
        tokens = self.train.inputs.dtype == torch.int64
        object.__setattr__(self, "vocabulary", (self.vocabulary or self.classes) if tokens else None)
        mean, std = ((0.0,), (1.0,)) if tokens else (self.mean, self.std)
        if mean is None or std is None:
            mean, std = statistics(self.train.inputs)
        for name, given, low in (("mean", mean, -math.inf), ("std", std, 0.0)):
            values = (given,) if isinstance(given, int | float) else tuple(given)
            if not all(isinstance(value, int | float) and low < value < math.inf for value in values):
                least = " above 0" if name == "std" else ""
                raise DataError(f"dataset {self.name}: {name}: expected finite numbers{least}, got {values}")
            if len(values) not in (1, *self.train.inputs.shape[1:2]):
                raise DataError(
                    f"dataset {self.name}: {name}: expected one number, or one for each channel, got {values}"
                )
            object.__setattr__(self, name, values)
        if self.token_bytes is not None and (fault := self._fault_of_token_bytes(self.token_bytes)) is not None:
            raise DataError(f"dataset {self.name}: token_bytes: {fault}")

        if self.texts is not None:
            shape = self.train.targets.shape[1:]
            fault = ": expected None, since examples have one target" if not shape else None
            if (fault := fault or fault_of_texts(self.texts, self.classes, *shape)) is not None:
                raise DataError(f"dataset {self.name}: texts{fault}")

    def _fault_of_token_bytes(self, found: Tensor) -> str | None:
        if self.vocabulary is None or self.train.targets.ndim == 1:
            return f"expected None, since examples are {form_of(self.train)}, not text"
        if not isinstance(found, Tensor):
            return f"expected a tensor, got {type(found).__name__}"
        if found.dtype != torch.int64 or found.shape != (self.classes,):
            return f"expected int64 of shape ({self.classes},), one for each class, got {_described(found)}"
        if int(found.min()) < 0:
            return f"expected byte counts of at least 0, got {int(found.min())}"
        for half in ("train", "test"):
            if not bool(found[getattr(self, half).targets].any()):
                return f"expected {half} targets that represent text, got only tokens of 0 bytes"
        return None

    @property
    def inputs(self) -> InputSpec:
        """The form of one model input: float32 for uint8 data, because the data are converted; int64 for tokens."""
        dtype = torch.int64 if self.vocabulary is not None else torch.float32
        return InputSpec(tuple(self.train.inputs.shape[1:]), dtype, self.vocabulary)

    def unigram_entropies(self) -> dict[str, float]:
        """Return the unigram entropy of each domain's training text, in bits per byte; see `unigram_entropy`.

        The result is empty if there are no texts, or if the number of bytes per token is unknown.
        """
        known, texts = self.token_bytes, self.texts or {}
        return {} if known is None else {name: unigram_entropy(text.train, known) for name, text in texts.items()}

    def without_pixels(self) -> Dataset:
        """Return the dataset with its inputs replaced by zeros of shape (N, C, 1, ..., 1), to save memory.

        Text datasets are returned unchanged.
        """
        if self.texts is not None:
            return self
        shape = self.train.inputs.shape
        small = (*shape[1:2], *(1,) * len(shape[2:]))
        halves = [replace(half, inputs=half.inputs.new_zeros(len(half), *small)) for half in (self.train, self.test)]
        return replace(self, train=halves[0], test=halves[1])


def fault_of(half: Split, classes: int, vocabulary: int | None) -> str | None:
    """Describe a fault in a half's examples, as text to append to the half's name; return None if they are valid."""
    inputs, targets = half.inputs, half.targets
    if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor)):
        return f": expected two tensors, got {type(inputs).__name__} and {type(targets).__name__}"
    if inputs.dtype not in (torch.uint8, torch.float32, torch.int64):
        return f".inputs: expected uint8, float32 or int64, got {_plain(inputs.dtype)}"
    if targets.dtype != torch.int64 or targets.ndim not in (1, 2):
        return f".targets: expected int64 of shape (N,) or (N, T), got {_described(targets)}"
    if not len(inputs) or len(inputs) != len(targets):
        return f": expected as many inputs as targets, and at least one, got {len(inputs)} and {len(targets)}"
    if inputs.dtype == torch.float32 and not bool(torch.isfinite(inputs).all()):
        return ".inputs: expected finite numbers, got NaN or infinity"
    ranges = {"targets": (targets, classes)}
    if inputs.dtype == torch.int64:
        ranges["inputs"] = (inputs, vocabulary or classes)
    for name, (values, count) in ranges.items():
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= count:
            return f".{name}: expected integers in 0..{count - 1}, got {low}..{high}"
    return None if half.cues is None else _fault_of_cues(half.cues, len(targets), classes)


def _fault_of_cues(cues: object, count: int, classes: int) -> str | None:
    if not isinstance(cues, Tensor) or cues.dtype != torch.int64 or cues.shape != (count,):
        found = _described(cues) if isinstance(cues, Tensor) else type(cues).__name__
        return f".cues: expected int64 of shape ({count},), got {found}"
    low, high = int(cues.min()), int(cues.max())
    return f".cues: expected integers in 0..{classes - 1}, got {low}..{high}" if low < 0 or high >= classes else None


def fault_of_texts(texts: Mapping[str, Text], vocabulary: int, context: int) -> str | None:
    """Describe a fault in text domains, as text to append to the name `texts`; return None if they are valid."""
    for domain, text in texts.items():
        for part in ("train", "validation", "test"):
            if (fault := _fault_of_tokens(getattr(text, part, None), vocabulary, context)) is not None:
                return f": {domain}.{part}: {fault}"
    return None if texts else ": expected at least one domain, got none"


def _fault_of_tokens(tokens: object, vocabulary: int, context: int) -> str | None:
    if not isinstance(tokens, Tensor) or tokens.ndim != 1 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        found = _described(tokens) if isinstance(tokens, Tensor) else type(tokens).__name__
        return f"expected integers of shape (n,), got {found}"
    if len(tokens) <= context:
        return f"expected at least {context + 1} tokens, one window of context {context}, got {len(tokens)}"
    low, high = int(tokens.min()), int(tokens.max())
    return f"expected tokens in 0..{vocabulary - 1}, got {low}..{high}" if low < 0 or high >= vocabulary else None


def form_of(half: Split) -> str:
    """Describe the form of examples, e.g. `float32 (2,) with one target`."""
    targets = f"targets {tuple(half.targets.shape[1:])}" if half.targets.ndim > 1 else "one target"
    return f"{_plain(half.inputs.dtype)} {tuple(half.inputs.shape[1:])} with {targets}"


def _described(tensor: Tensor) -> str:
    return f"{_plain(tensor.dtype)} of shape {tuple(tensor.shape)}"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
