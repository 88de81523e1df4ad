"""Write the columns of a run's tables into docs/run-directory.md, from the dataclasses that define their rows.

python -m docs.site.tables          # a test checks that the page is up to date
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from docs.site.described import code, descriptions, paragraphs, table
from optbench.store.pairs_table import SCHEMA as PAIRS
from optbench.store.pairs_table import PairRow
from optbench.store.tables import ALL_TABLES, KEY_COLUMNS, ON_REQUEST, SCHEMA_VERSION, Row, arrow_schema
from optbench.store.values import SUMMARY, SUMMARY_SCHEMA, SummaryRow

PAGE = Path(__file__).parents[1] / "run-directory.md"
BEGIN = "<!-- columns: written by python -m docs.site.tables -->"
END = "<!-- end columns -->"
TITLES = ("column", "type", "null?", "meaning")
KEYS = {
    "trial": "Id of the trial: `experiment/model/optimizer/variant/seed=N`.",
    "experiment": "Name of the experiment in the suite.",
    "model": "Name of the model in the experiment.",
    "optimizer": "Name of the optimizer in the suite.",
    "variant": "Swept hyper-parameters with their values, as in `lr=0.1,momentum=0.9`; `default` if none is swept.",
    "seed": "Seed of the trial.",
    "stage": "`eval`, `tune` or `control`, as described above.",
}


def updated(page: str) -> str:
    """Return the text of the page with the current columns between the two markers."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{columns()}\n{END}{rest.split(END)[1]}"


def columns() -> str:
    """Return the schema version, and a section for each table with its columns in their order in the file."""
    schema = arrow_schema(next(iter(ALL_TABLES.values())))
    keys = [(code(name), str(schema.field(name).type), "", KEYS[name]) for name in KEY_COLUMNS]
    head = f"""The files have schema version {SCHEMA_VERSION}, which is recorded in their metadata.

### Key columns

All tables except `pairs` begin with these columns:

{table(TITLES, keys)}"""
    return "\n".join([head, *(_section(name, *found) for name, found in _found().items())])


def _found() -> dict[str, tuple[type, pa.Schema]]:
    rows: dict[str, type[Row]] = ALL_TABLES
    found: dict[str, tuple[type, pa.Schema]] = {name: (row, arrow_schema(row)) for name, row in rows.items()}
    return found | {SUMMARY: (SummaryRow, SUMMARY_SCHEMA), "pairs": (PairRow, PAIRS)}


def _section(name: str, row: type, schema: pa.Schema) -> str:
    said = descriptions(row)
    keys = () if name == "pairs" else KEY_COLUMNS
    rows = [
        (code(field.name), str(field.type), "yes" if field.nullable else "", said.get(field.name, ""))
        for field in schema
        if field.name not in keys
    ]
    optional = "\n\nWritten only if the suite requests it." if name in {*ON_REQUEST, "pairs"} else ""
    return f"### {name}\n\n{paragraphs(row.__doc__)}{optional}\n\n{table(TITLES, rows)}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
