"""The directory of a run: where a new one is made, and whether an existing one may be continued here."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optbench.errors import UsageError
from optbench.store.read import read_json


def places(runs_dir: Path, name: str | None, suite: str) -> Iterator[Path]:
    """Yield the requested directory, or else `<suite name>-<UTC time>`, then the same with `-2`, `-3`, ..."""
    if name is not None:
        yield runs_dir / name
        return
    name = f"{suite}-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}"
    yield runs_dir / name
    for number in itertools.count(2):
        yield runs_dir / f"{name}-{number}"


def check_provenance(resume: Path, record: Mapping[str, Any]) -> None:
    """Check that a run continues with the version of torch and on the kind of machine that it was begun with.

    record: the provenance of this process.

    Raises:
        UsageError: one of them differs.
    """
    if what := differs(latest_provenance(read_json(resume)), record):
        name, then, now = what
        raise UsageError(
            f"--resume {resume}: that run was made with {name} {then}, and this is {name} {now}: "
            "what is left would not be what it would have been; --force continues all the same"
        )


def latest_provenance(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The provenance of what a run trained last. record: its `run.json`, whose fields have been checked."""
    return (record.get("resumed") or [record])[-1].get("provenance") or {}


def differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """What may make two trainings of one suite differ: its name, and what it is in either provenance; None: nothing."""
    for name, then, is_now in (
        ("torch", before.get("torch"), now.get("torch")),
        ("device", _kind(before.get("device")), _kind(now.get("device"))),
        ("CPU instructions", before.get("cpu_capability"), now.get("cpu_capability")),
    ):
        if then is not None and is_now != then:
            return name, then, is_now
    return None


def _kind(device: object) -> str | None:
    """`cuda` of `cuda:1`."""
    return device.split(":")[0] if isinstance(device, str) else None
