"""The records of a document as csv, one per line. Values are as in JSON, except that undefined ones are empty."""

from __future__ import annotations

import csv
import io

from optbench.errors import escaped
from optbench.report.document import Report
from optbench.report.formats.json import plain


def render(document: Report) -> str:
    """Render the document's records below a header line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, document.columns, lineterminator="\n")
    writer.writeheader()
    for row in (row for found in document.records if found.lines for row in found.lines()):
        values = {key: plain(value) for key, value in row.items()}
        writer.writerow({key: escaped(value) if isinstance(value, str) else value for key, value in values.items()})
    return text.getvalue()
