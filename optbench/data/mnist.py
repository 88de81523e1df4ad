"""The embedded MNIST data: one Parquet file with the published bytes, in the published order.

The file has one row per image, training images first: `image` (784 bytes, rows from top to bottom), `label` and
`split` (`train` or `test`). It was made by `benchmarks/embed_mnist.py`; its licence is in MNIST-LICENSE.md.
"""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from optbench.data.catalog import FACTS
from optbench.data.dataset import Dataset, Split
from optbench.errors import DataError

FILE_NAME = "mnist.parquet"

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of the four original IDX files, uncompressed."""


def embedded_mnist() -> Dataset:
    """Load MNIST from the package: 60,000 training and 10,000 test images of shape (1, 28, 28), in about 0.2 s.

    Raises:
        DataError: the file is missing from the installation, or damaged.
    """
    info = FACTS["mnist"]
    try:
        # pq.read_table and to_numpy would import pandas, which takes longer than reading the file.
        with as_file(files("optbench.data") / FILE_NAME) as path, pq.ParquetFile(path) as file:
            table = file.read(columns=["image", "label"], use_threads=False).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the embedded MNIST cannot be read; reinstall optbench ({type(error).__name__})") from error
    if len(table) != info.train_size + info.test_size:
        raise DataError(f"the embedded MNIST: expected 70000 rows, got {len(table)}; reinstall optbench")
    images = _bytes(table["image"].chunk(0)).reshape(-1, *info.shape)
    labels = _bytes(table["label"].chunk(0)).astype(np.int64)
    # copied, because torch warns about read-only buffers such as Arrow's
    pixels, classes = torch.from_numpy(images.copy()), torch.from_numpy(labels)
    first = info.train_size
    return Dataset(
        name=info.name,
        train=Split(pixels[:first], classes[:first]),
        test=Split(pixels[first:], classes[first:]),
        classes=info.classes,
        mean=(0.1307,),
        std=(0.3081,),
    )


def _bytes(column: pa.Array) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return the bytes of a column of uint8 or fixed-size binary as a flat read-only array, without a copy."""
    width = column.type.byte_width
    buffer = column.buffers()[1]
    return np.frombuffer(buffer, dtype=np.uint8, count=len(column) * width, offset=column.offset * width)
