"""The datasets that are known by name: callables that return a `Dataset`, as a user's are. No torch before the call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optbench.data.catalog import FACTS
from optbench.data.folder import data_folder

if TYPE_CHECKING:
    from optbench.data.dataset import Dataset


@dataclass(frozen=True)
class Access:
    """Where published files are looked for, and whether missing ones are downloaded; see `optbench.data.load`."""

    data_dir: Path | None = None
    download: bool = True
    notify: Callable[[str], None] | None = None


_ACCESS: ContextVar[Access] = ContextVar("access")


@contextlib.contextmanager
def accessing(access: Access) -> Iterator[None]:
    """Enclose calls of datasets that may read published files."""
    token = _ACCESS.set(access)
    try:
        yield
    finally:
        _ACCESS.reset(token)


def mnist() -> Dataset:
    """MNIST handwritten digits"""
    from optbench.data.mnist import embedded_mnist

    return embedded_mnist()


def fashion_mnist() -> Dataset:
    """Fashion-MNIST articles of clothing"""
    return _published("fashion-mnist")


def kmnist() -> Dataset:
    """Kuzushiji-MNIST cursive Japanese characters"""
    return _published("kmnist")


def emnist() -> Dataset:
    """EMNIST balanced: handwritten digits and letters"""
    return _published("emnist")


def cifar10() -> Dataset:
    """CIFAR-10 small colour photographs"""
    return _published("cifar10")


def cifar100() -> Dataset:
    """CIFAR-100 small colour photographs, fine labels"""
    return _published("cifar100")


def svhn() -> Dataset:
    """SVHN street view house numbers, cropped digits"""
    return _published("svhn")


def _published(name: str) -> Dataset:
    from optbench.data.vision import load_published

    access = _ACCESS.get(Access())
    return load_published(FACTS[name], data_folder(access.data_dir), access.download, access.notify)
