"""Datasets: MNIST embedded, others through torchvision. Importing this package imports no torch; `load` does."""

from optbench.data.catalog import DATASETS, DatasetInfo
from optbench.data.dataset import Dataset, Split
from optbench.data.loading import data_folder, load

__all__ = ["DATASETS", "Dataset", "DatasetInfo", "Split", "data_folder", "load"]
