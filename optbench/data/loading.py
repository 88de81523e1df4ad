"""The one way to a dataset: a name that is registered, or a kind with its settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

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
    """Loads a dataset into memory, on the CPU.

    Processes that load the same dataset at once should not all download it: load it in one of them first.

    Args:
        kind: a registered name, or a suite's dataset.
        data_dir: the folder of the published files; None: see `data_folder`. The embedded `mnist` needs none.
        download: fetch what is missing into that folder; False never touches the network.
        notify: is told, in a line, when something is about to be downloaded or unpacked.

    Raises:
        DataError: files missing and not to be had (the message names them and their folder); or files
            whose content is not the dataset.
        KindError: unknown name, or a user's function returns something else.
        Exception: whatever it raises.
    """
    token = ACCESS.set(Access(data_dir, download, notify))
    try:
        return loaded(kind)
    finally:
        ACCESS.reset(token)


def loaded(kind: Kind | str) -> Dataset:
    """As `load`, where it has been said already how published files are found: for a dataset made of another one."""
    from optbench.data.dataset import Dataset  # late, because it imports torch

    name = kind.kind if isinstance(kind, Kind) else kind
    try:
        found = kind.make(seed=0) if isinstance(kind, Kind) else DATASETS.load(name)()
    except DataError as error:  # what a user's function made checks itself
        if not DATASETS.is_users(name):
            raise
        raise KindError(f"{name}: {error}") from None
    if not isinstance(found, Dataset):
        raise KindError(f"{name}: expected an optbench.Dataset, got {type(found).__name__}")
    return found
