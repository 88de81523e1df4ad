"""The records of a document as csv, one per line: values as in JSON, but undefined values are empty."""

from __future__ import annotations

import csv
import io

from optbench.errors import escaped
from optbench.report.document import Report
from optbench.report.formats.json import plain


def render(document: Report) -> str:
    """Render the document's records under a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, document.columns, lineterminator="\n")
    writer.writeheader()
    for row in (row for found in document.records if found.lines for row in found.lines()):
        values = {key: plain(value) for key, value in row.items()}
        writer.writerow({key: escaped(value) if isinstance(value, str) else value for key, value in values.items()})
    return text.getvalue()
