"""Make optbench/data/text.parquet from the four text domains (gzipped).

    python benchmarks/embed_text.py FOLDER-OF-THE-DOMAINS [OUTPUT]

The folder contains scripture.txt.gz, glosses.txt.gz, prose.txt.gz and code.txt.gz. Every run gives the same result
(pyarrow 26, zstd level 22, one page, so that zstd's window spans all four domains).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from optbench.data.text_domains import FILE_NAME, SHA256


def domain(folder: Path, name: str) -> bytes:
    """Return the text in `folder/name.txt.gz`, after checking its digest."""
    file = folder / f"{name}.txt.gz"
    content = gzip.decompress(file.read_bytes())
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise SystemExit(f"{file} is not the original text: its SHA-256 differs")
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded text from the four domains.")
    parser.add_argument("folder", type=Path, help="folder with the four gzipped texts")
    default = Path(__file__).parents[1] / "optbench" / "data" / FILE_NAME
    parser.add_argument("output", type=Path, nargs="?", default=default)
    arguments = parser.parse_args()
    texts = pa.array([domain(arguments.folder, name) for name in SHA256], pa.binary())
    pq.write_table(
        pa.table({"domain": pa.array(SHA256), "text": texts}),
        arguments.output,
        compression="zstd",
        compression_level=22,
        use_dictionary=False,
        data_page_size=1 << 26,
        write_statistics=False,
    )
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
