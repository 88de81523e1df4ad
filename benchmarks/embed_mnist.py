"""Make optbench/data/mnist.parquet from the four original IDX files (gzipped).

    python benchmarks/embed_mnist.py FOLDER-OF-THE-IDX-FILES [OUTPUT]

The resulting file takes 9.81 MB and is read in 0.2 s (pyarrow 26, zstd level 22, one page of at most 64 MiB; with
level 19 and pages of 1 MiB it takes 10.25 MB). Creating it takes about 45 s.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from optbench.data.mnist import FILE_NAME, SHA256


def idx_array(folder: Path, name: str) -> np.ndarray:
    """Return the array in the IDX file `folder/name.gz`, after checking its digest."""
    content = gzip.decompress((folder / f"{name}.gz").read_bytes())
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise SystemExit(f"{folder / name}.gz is not the original file: its SHA-256 differs")
    dimensions = content[3]
    shape = [int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, dimensions + 1)]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def table(folder: Path) -> pa.Table:
    """Return the images as a table with one row per image, the training set first."""
    images = np.concatenate([idx_array(folder, f"{part}-images-idx3-ubyte") for part in ("train", "t10k")])
    labels = np.concatenate([idx_array(folder, f"{part}-labels-idx1-ubyte") for part in ("train", "t10k")])
    rows = len(images)
    pixels = pa.FixedSizeBinaryArray.from_buffers(pa.binary(784), rows, [None, pa.py_buffer(images.tobytes())])
    split = pa.array(["train"] * 60_000 + ["test"] * 10_000).dictionary_encode()
    return pa.table({"image": pixels, "label": pa.array(labels), "split": split})


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded MNIST from the four original IDX files.")
    parser.add_argument("folder", type=Path, help="folder with the four gzipped IDX files")
    default = Path(__file__).parents[1] / "optbench" / "data" / FILE_NAME
    parser.add_argument("output", type=Path, nargs="?", default=default)
    arguments = parser.parse_args()
    pq.write_table(
        table(arguments.folder),
        arguments.output,
        compression="zstd",
        compression_level=22,
        use_dictionary=["split"],
        # Large pages give zstd its full window over the images.
        data_page_size=1 << 26,
        write_statistics=False,
        row_group_size=70_000,
    )
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
