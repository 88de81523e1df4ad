"""The one way to a dataset: by its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from optbench.data.catalog import DATASETS
from optbench.errors import DataError, KindError, UsageError, unknown
from optbench.kinds import Kind
from optbench.paths import user_path

if TYPE_CHECKING:
    from optbench.data.dataset import Dataset


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


def load(
    kind: Kind | str,
    data_dir: Path | None = None,
    download: bool = True,
    notify: Callable[[str], None] | None = None,
) -> Dataset:
    """Loads a dataset into memory, on the CPU.

    Processes that load the same dataset at once should not all download it: load it in one of them first.

    Args:
        kind: a name in `DATASETS`, or a dataset of a user's.
        data_dir: the folder of the published files; None: see `data_folder`. The embedded `mnist` needs none.
        download: fetch what is missing into that folder; False never touches the network.
        notify: is told, in a line, when something is about to be downloaded or unpacked.

    Raises:
        DataError: unknown name; files missing and not to be had (the message names them and their folder); or files
            whose content is not the dataset.
        KindError: a user's function returns something else.
        Exception: whatever it raises.
    """
    if isinstance(kind, Kind) and kind.is_users:
        return _users(kind)
    name = kind.kind if isinstance(kind, Kind) else kind
    if name not in DATASETS:
        raise DataError(unknown("dataset", name, DATASETS))
    info = DATASETS[name]
    # Imported here: both bring torch, and the catalogue must be readable without it.
    if info.embedded:
        from optbench.data.mnist import embedded_mnist

        return embedded_mnist()
    from optbench.data.vision import load_published

    return load_published(info, data_folder(data_dir), download, notify)


def _users(kind: Kind) -> Dataset:
    from optbench.data.dataset import Dataset  # late, as above

    try:
        found = kind.make(seed=0)
    except DataError as error:  # what it made checks itself
        raise KindError(f"{kind.kind}: {error}") from None
    if not isinstance(found, Dataset):
        raise KindError(f"{kind.kind}: expected an optbench.Dataset, got {type(found).__name__}")
    return found
