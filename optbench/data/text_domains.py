"""The embedded text: four domains in one Parquet file, with the bytes as collected.

The file has one row per domain, with the columns `domain` (the name) and `text` (ASCII bytes). It was made by
`benchmarks/embed_text.py`; the licence terms of each domain are in TEXT-LICENSE.md.
"""

from __future__ import annotations

from importlib.resources import as_file, files

import pyarrow as pa
import pyarrow.parquet as pq

from optbench.data.catalog import TEXT_DOMAINS
from optbench.errors import DataError

FILE_NAME = "text.parquet"

SHA256 = {
    "scripture": "364b0acf2ab1c7a420fdaf7c7f77de078fb6085e745b9cdb53fa3b0e068f776d",
    "glosses": "aa091eb21f9f788bc4b728d11063da719c38072349bbed16091d8669ebd731de",
    "prose": "ee38372167df7f740f7daee794e3f9184f65bdacc417a902950ec8a42d6591eb",
    "code": "ca1f00448af996e57df03d15e9a34f552e7e4a46a04db50c90870efe99705fdc",
}
"""SHA-256 of each domain's text."""


def embedded_texts() -> dict[str, bytes]:
    """Load the four domains by name, 1,200,000 bytes each, in about 20 ms.

    Raises:
        DataError: the file is missing from the installation, or damaged.
    """
    try:
        # avoids functions that import pandas, as for MNIST
        with as_file(files("optbench.data") / FILE_NAME) as path, pq.ParquetFile(path) as file:
            names, texts = (column.to_pylist() for column in file.read(["domain", "text"], use_threads=False))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the embedded text cannot be read; reinstall optbench ({type(error).__name__})") from error
    found = dict(zip(names, texts, strict=True))
    if {name: len(text) for name, text in found.items()} != dict.fromkeys(TEXT_DOMAINS.domains, TEXT_DOMAINS.size):
        raise DataError("the embedded text is damaged; reinstall optbench")
    return found
