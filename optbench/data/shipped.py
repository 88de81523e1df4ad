"""The registered datasets: functions that return a `Dataset`, like users' functions.

They import torch only when called.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from optbench.data.catalog import FACTS, TEXT_DOMAINS, TEXT_FILES
from optbench.data.text import ASCII, MOST, Encoding, text_dataset
from optbench.errors import DataError, UsageError
from optbench.kinds import Whole
from optbench.paths import user_path
from optbench.targets import read_text

if TYPE_CHECKING:
    from optbench.data.dataset import Dataset


Side = Annotated[Whole, Field(ge=1)]
"""Number of pixels per side after average pooling; see `optbench.data.pooling`."""

Vocabulary = Annotated[Whole, Field(gt=ASCII, le=MOST)]
"""Vocabulary size for `tokens: bpe`."""
Context = Annotated[Whole, Field(ge=1, le=65_536)]
"""Number of tokens in one example."""
DomainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")]


@dataclass(frozen=True)
class Access:
    """How to access published files: their folder, and whether to download missing ones; see `optbench.data.load`."""

    data_dir: Path | None = None
    download: bool = True
    notify: Callable[[str], None] | None = None


ACCESS: ContextVar[Access] = ContextVar("access")
"""The access in effect while a dataset is loaded; not a setting, because it does not affect the data."""


def data_folder(data_dir: Path | None = None) -> Path:
    """Return the dataset folder: `data_dir`, else $OPTBENCH_DATA, else ~/.cache/optbench/data.

    Raises:
        UsageError: a given path is empty or not UTF-8, or begins with a home directory that does not exist.
        DataError: the user has no home directory, and no other folder is given.
    """
    if data_dir is not None:
        return user_path(data_dir, "--data-dir")
    if named := os.environ.get("OPTBENCH_DATA"):
        return user_path(named, "OPTBENCH_DATA")
    try:
        return user_path("~/.cache/optbench/data", "the folder of datasets")
    except UsageError as error:
        raise DataError(f"{error}, with --data-dir or OPTBENCH_DATA") from None


def mnist(*, resize: Side | None = None) -> Dataset:
    """MNIST handwritten digits"""
    from optbench.data.mnist import embedded_mnist

    return _resized(embedded_mnist(), resize)


def fashion_mnist(*, resize: Side | None = None) -> Dataset:
    """Fashion-MNIST articles of clothing"""
    return _published("fashion-mnist", resize)


def kmnist(*, resize: Side | None = None) -> Dataset:
    """Kuzushiji-MNIST cursive Japanese characters"""
    return _published("kmnist", resize)


def emnist(*, resize: Side | None = None) -> Dataset:
    """EMNIST balanced: handwritten digits and letters"""
    return _published("emnist", resize)


def cifar10(*, resize: Side | None = None) -> Dataset:
    """CIFAR-10 small colour photographs"""
    return _published("cifar10", resize)


def cifar100(*, resize: Side | None = None) -> Dataset:
    """CIFAR-100 small colour photographs, fine labels"""
    return _published("cifar100", resize)


def svhn(*, resize: Side | None = None) -> Dataset:
    """SVHN street view house numbers, cropped digits"""
    return _published("svhn", resize)


def text_domains(
    *, tokens: Encoding = "bytes", vocabulary: Vocabulary | None = None, context: Context = 128
) -> Dataset:
    """Scripture, a dictionary's glosses, technical prose, Python code"""
    from optbench.data.text_domains import embedded_texts

    return text_dataset(TEXT_DOMAINS.name, embedded_texts(), tokens, vocabulary, context)


def text_files(
    *,
    files: Annotated[dict[DomainName, Annotated[str, Field(min_length=1)]], Field(min_length=1)],
    tokens: Encoding = "bytes",
    vocabulary: Vocabulary | None = None,
    context: Context = 128,
) -> Dataset:
    """Your own texts, one file per domain"""
    contents = {name: read_text(path) for name, path in files.items()}
    return text_dataset(TEXT_FILES, contents, tokens, vocabulary, context)


def modular_addition(
    *,
    modulus: Annotated[Whole, Field(ge=2, le=999)] = 97,
    train_share: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0,
) -> Dataset:
    """All sums a + b modulo a number, with a share of them for training"""
    from optbench.data.modular import modular_addition_dataset

    return modular_addition_dataset(modulus, train_share, seed)


def _published(name: str, resize: int | None) -> Dataset:
    from optbench.data.vision import load_published

    access = ACCESS.get(Access())
    found = load_published(FACTS[name], data_folder(access.data_dir), access.download, access.notify)
    return _resized(found, resize)


def _resized(dataset: Dataset, side: int | None) -> Dataset:
    if side is None:
        return dataset
    from optbench.data.pooling import average_pooled

    return average_pooled(dataset, side)
