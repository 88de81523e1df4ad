"""The folder of the published files."""

from __future__ import annotations

import os
from pathlib import Path

from optbench.errors import DataError, UsageError
from optbench.paths import user_path


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
