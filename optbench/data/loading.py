"""Loading of datasets by registered name, or by kind and settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from optbench.data.shipped import ACCESS, Access
from optbench.errors import DataError, KindError
from optbench.kinds import DATASETS, Kind

if TYPE_CHECKING:
    from optbench.data.dataset import Dataset


def load(
    kind: Kind | str,
    data_dir: Path | None = None,
    download: bool = True,
    notify: Callable[[str], None] | None = None,
) -> Dataset:
    """Load a dataset into memory, on the CPU.

    To avoid downloading a dataset several times, load it in one process before others use it.

    Args:
        kind: a registered name, or the dataset settings of a suite.
        data_dir: the folder of the published files, by default `data_folder()`; embedded datasets do not need it.
        download: whether to fetch missing files into that folder; if False, the network is never accessed.
        notify: a function called with a line of text before files are downloaded or unpacked.

    Raises:
        DataError: files are missing and cannot be obtained (the message names them and their folder), or their
            content is invalid.
        KindError: the name is unknown, or a user's function does not return a dataset.
        Exception: any exception raised by a user's function.
    """
    token = ACCESS.set(Access(data_dir, download, notify))
    try:
        return loaded(kind)
    finally:
        ACCESS.reset(token)


Load: TypeAlias = "Callable[[Kind], Dataset]"
"""A function that loads a dataset."""


def keeping_last(load: Load) -> Load:
    """Return a function that loads datasets and keeps the last one, in case the next experiment uses it as well.

    The function releases the last dataset before it loads another.
    """
    last: list[tuple[Kind, Dataset]] = []

    def found(kind: Kind) -> Dataset:
        if not last or last[0][0] != kind:
            last.clear()
            last.append((kind, load(kind)))
        return last[0][1]

    return found


def loaded(kind: Kind | str) -> Dataset:
    """Load a dataset, such as the base of a derived dataset, with the `Access` currently in effect."""
    from optbench.data.dataset import Dataset  # late, because it imports torch

    name = kind.kind if isinstance(kind, Kind) else kind
    try:
        found = kind.make(seed=0) if isinstance(kind, Kind) else DATASETS.load(name)()
    except DataError as error:  # a user's dataset validates itself
        if not DATASETS.is_users(name):
            raise
        raise KindError(f"{name}: {error}") from None
    if not isinstance(found, Dataset):
        raise KindError(f"{name}: expected an optbench.Dataset, got {type(found).__name__}")
    return found
