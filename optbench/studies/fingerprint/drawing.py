"""Functions that compute an optimizer's fingerprint from a run, and save it to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from optbench.errors import UsageError, unknown
from optbench.report.figures.rendering import FILE_FORMATS
from optbench.stats.results import read_results
from optbench.store import read_run
from optbench.store.files import json_text, write_text
from optbench.studies.fingerprint import figure, html, panel, records
from optbench.studies.fingerprint.entry import read_entry
from optbench.studies.fingerprint.standing import Fingerprint, fingerprint
from optbench.studies.fingerprint.training import tuning_of

TEXTS: dict[str, Callable[[Fingerprint], str]] = {
    "html": html.page,
    "json": lambda found: json_text(records.record(found)),
}
SUFFIXES = (*TEXTS, *FILE_FORMATS)


def draw(path: Path, optimizer: str | None = None) -> Fingerprint:
    """Return the fingerprint of an optimizer in the run at `path`.

    optimizer: the optimizer's name; can be omitted if the run has only one optimizer.

    Raises:
        OptbenchError: the run cannot be read, has no such optimizer, or cannot be compared with the panel.
    """
    found = read_results(read_run(path))
    known = panel.shipped()
    panel.check(known, found)
    beside = tuning_of(path)
    tuning = read_results(read_run(beside)) if beside is not None else None
    return fingerprint(read_entry(found, optimizer, tuning), known, panel.remarks(known, found))


def check_file(path: Path, place: str) -> None:
    """Raise UsageError if the suffix of `path` is unknown or its directory does not exist.

    place: the beginning of the error message, e.g. the user's argument.
    """
    if (suffix := path.suffix.lstrip(".")) not in SUFFIXES:
        raise UsageError(f"{place}: {unknown('suffix', suffix, SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"{place}: there is no directory {path.parent}")


def save(found: Fingerprint, path: Path) -> None:
    """Write a fingerprint to a file, in the format given by the file's suffix (one of `SUFFIXES`).

    Raises:
        StoreError: the file cannot be written.
    """
    suffix = path.suffix.lstrip(".")
    if suffix in TEXTS:
        write_text(path, TEXTS[suffix](found))
    else:
        figure.save(found, path)
