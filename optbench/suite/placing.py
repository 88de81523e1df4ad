"""Locations of faults that are found after a suite is loaded, when its kinds are tried."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from optbench.errors import OptbenchError
from optbench.suite.document import Document
from optbench.suite.extends import read_document
from optbench.suite.faults import shown_path
from optbench.suite.overrides import apply_override, parse_override


@contextlib.contextmanager
def placing(path: Path, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Prefix errors raised in the block with their location in the suite file `path`, as `load_suite` does.

    Only lines that begin with a path into the suite, such as `experiments.mine.tasks: ...`, are changed.

    overrides: see `load_suite`.
    """
    try:
        yield
    except OptbenchError as error:
        document: Document | None = None
        with contextlib.suppress(OptbenchError):  # a file that has since been deleted has no locations
            document = read_document(path)
            for text in overrides:
                apply_override(document, parse_override(text))
        if document is None:
            raise
        raise type(error)(*(_placed(str(line), document) for line in error.args)) from error.__cause__


def _placed(line: str, document: Document) -> str:
    known = {shown_path(path): path for path in document.keys}
    where = line.partition(": ")[0]
    while "." in where:
        if where in known:
            # messages about models name the setting after the kind: `models.net: vit: heads: expected ...`
            named = line.removeprefix(f"{where}: ").split(": ")[:2]
            inner = [(*known[where], key) for key in (*reversed(named), "kind", "target")]
            path = next((path for path in inner if path in document.values), known[where])
            return f"{document.value_place(path)}: {line}"
        where = where.rpartition(".")[0]
    return line
