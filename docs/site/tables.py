"""Generate the reference for a run's tables from the dataclasses that define their rows."""

from __future__ import annotations

import pyarrow as pa

from docs.site.described import code, descriptions, paragraphs, table
from optbench.store.pairs_table import SCHEMA as PAIRS
from optbench.store.pairs_table import PairRow
from optbench.store.tables import ALL_TABLES, KEY_COLUMNS, ON_REQUEST, SCHEMA_VERSION, Row, arrow_schema
from optbench.store.values import SUMMARY, SUMMARY_SCHEMA, SummaryRow

HEAD = f"""# Tables and columns

Every table of a [run directory](../run-directory.md) is a Parquet file with schema version {SCHEMA_VERSION}. All tables
except `pairs` begin with the key columns {", ".join(map(code, KEY_COLUMNS))}. `after_task` is 0 before any training and
i after task i. Tasks are numbered from 1. A null means that a value does not apply or is undefined. To read the tables
with pandas, DuckDB or Polars, see [Reading the tables](../reading-tables.md).
"""


def page() -> str:
    return "\n".join([HEAD, *(_section(name, *found) for name, found in _found().items())])


def _found() -> dict[str, tuple[type, pa.Schema]]:
    rows: dict[str, type[Row]] = ALL_TABLES
    found: dict[str, tuple[type, pa.Schema]] = {name: (row, arrow_schema(row)) for name, row in rows.items()}
    return found | {SUMMARY: (SummaryRow, SUMMARY_SCHEMA), "pairs": (PairRow, PAIRS)}


def _section(name: str, row: type, schema: pa.Schema) -> str:
    said = descriptions(row)
    keys = () if name == "pairs" else KEY_COLUMNS
    columns = [
        (code(field.name), str(field.type), "yes" if field.nullable else "", said.get(field.name, ""))
        for field in schema
        if field.name not in keys
    ]
    optional = "\n\nWritten only if the suite requests it." if name in {*ON_REQUEST, "pairs"} else ""
    return f"## {name}\n\n{paragraphs(row.__doc__)}{optional}\n\n" + table(
        ("column", "type", "null?", "meaning"), columns
    )
