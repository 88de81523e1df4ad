"""The datasets that are known by name: callables that return a `Dataset`, as a user's are. No torch before the call."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from optbench.data.catalog import FACTS
from optbench.errors import DataError, UsageError
from optbench.kinds import Whole
from optbench.paths import user_path

if TYPE_CHECKING:
    from optbench.data.dataset import Dataset


Side = Annotated[Whole, Field(ge=1)]
"""Of images that are average-pooled to `resize` × `resize` before anything else; see `optbench.data.pooling`."""


@dataclass(frozen=True)
class Access:
    """Where published files are looked for, and whether missing ones are downloaded; see `optbench.data.load`."""

    data_dir: Path | None = None
    download: bool = True
    notify: Callable[[str], None] | None = None


ACCESS: ContextVar[Access] = ContextVar("access")
"""Set around calls of datasets; not a setting, since it says nothing of the data."""


def data_folder(data_dir: Path | None = None) -> Path:
    """Return the folder to look for datasets in: `data_dir`, else $OPTBENCH_DATA, else ~/.cache/optbench/data.

    Raises:
        UsageError: a path begins with a home directory that is not there.
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
