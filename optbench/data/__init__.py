"""Datasets and their loading. Importing this package does not import torch; calling `load` does."""

from typing import TYPE_CHECKING, Any

from optbench.data.catalog import FACTS, DatasetInfo
from optbench.data.loading import load
from optbench.data.shipped import data_folder

if TYPE_CHECKING:
    from optbench.data.dataset import Dataset, InputSpec, Split

__all__ = ["FACTS", "Dataset", "DatasetInfo", "InputSpec", "Split", "data_folder", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from optbench.data import dataset

    return getattr(dataset, name)
