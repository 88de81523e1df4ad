"""The choice of a new run's directory, and a check that an existing run can be resumed on this machine."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optbench.errors import UsageError
from optbench.store.read import read_json


def places(runs_dir: Path, name: str | None, suite: str) -> Iterator[Path]:
    """Yield the directories to try for a new run in `runs_dir`.

    If `name` is not None, only the directory `name` is tried. Otherwise, the directories are `<suite>-<UTC time>`, the
    same with `-2` appended, the same with `-3`, and so on.
    """
    if name is not None:
        yield runs_dir / name
        return
    name = f"{suite}-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}"
    yield runs_dir / name
    for number in itertools.count(2):
        yield runs_dir / f"{name}-{number}"


def check_provenance(resume: Path, record: Mapping[str, Any]) -> None:
    """Check that a run is resumed with the same version of torch and on the same kind of machine as before.

    record: the provenance of this process.

    Raises:
        UsageError: the version or the kind of machine differs.
    """
    if what := differs(latest_provenance(read_json(resume)), record):
        name, then, now = what
        raise UsageError(
            f"--resume {resume}: expected {name} {then}, as in the earlier part of the run, got {name} {now}; "
            "the results of the remaining trials may differ; --force continues anyway"
        )


def latest_provenance(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the provenance of a run's latest resumption, or of its start if it was never resumed.

    record: the checked content of the run's `run.json`.
    """
    return (record.get("resumed") or [record])[-1].get("provenance") or {}


def differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the name and both values of the first difference that could change results; None if there is none.

    before, now: the provenance of two runs, or of one run before and after it is resumed.
    """
    for name, then, is_now in (
        ("torch", before.get("torch"), now.get("torch")),
        ("device", _kind(before.get("device")), _kind(now.get("device"))),
        ("CPU instructions", before.get("cpu_capability"), now.get("cpu_capability")),
    ):
        if then is not None and is_now != then:
            return name, then, is_now
    return None


def _kind(device: object) -> str | None:
    """Return the kind of a device, e.g. `cuda` for `cuda:1`."""
    return device.split(":")[0] if isinstance(device, str) else None
