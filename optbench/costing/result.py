"""The result of measurements: a JSON file, which `optbench report` renders. Does not import torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ConfigDict, ValidationError

from optbench.errors import StoreError
from optbench.store.files import json_text, json_value, write_text
from optbench.suite.fields import Settings

FORMAT: Final = "optbench-cost"
VERSION: Final = 1
MAX_BYTES = 64 << 20
"""Size limit of a result file in bytes; far larger than any result."""
Status = Literal["ok", "too large", "too slow", "failed", "started"]
"""`too slow`: stopped, with the time of its first step if that step finished. `started`: never written to a file."""


class _Record(Settings):
    # A file of a newer version may have more keys.
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Timing(_Record):
    """Seconds of a step with a number of threads.

    clock: `processor` (CPU time, which other processes hardly affect), `wall` or `device` (time between device events).
    after: number of preceding steps.
    gradient, statistics, roots, update: means of the parts, the last three with refreshes at their actual frequency.
    ordinary, low, high: median, minimum and maximum of the optimizer's steps without a refresh.
    refresh: mean of the optimizer's steps with a refresh.
    every: steps between refreshes; None if there are none, or if roots are renewed by need.
    renewed: mean share of roots renewed per step if they are renewed by need.
    """

    threads: int
    clock: Literal["processor", "wall", "device"]
    after: int
    steps: int
    gradient: float
    statistics: float
    roots: float
    update: float
    ordinary: float
    low: float
    high: float
    refresh: float | None = None
    every: int | None = None
    renewed: float | None = None

    @property
    def step(self) -> float:
        """Mean seconds of the optimizer per step, including refreshes."""
        return self.statistics + self.roots + self.update


class Holding(_Record):
    """The state of one kind of parameters: number of weights, bytes, and the sides of square factors."""

    kind: str
    weights: int
    bytes: int
    factors: tuple[int, ...] = ()


class Row(_Record):
    """The measurement of one optimizer at one size.

    needed, peak: estimated and measured peak bytes, on a GPU those of the device. idle: bytes of the process before the
    measurement. first: seconds that the optimizer takes for the first step, which creates the state.
    """

    optimizer: str
    target: str
    settings: dict[str, Any]
    size: str
    tokens: int
    parameters: int
    status: Status = "ok"
    note: str = ""
    source_hash: str | None = None
    twin: str | None = None
    idle: int = 0
    needed: int | None = None
    peak: int | None = None
    state: int | None = None
    planned_state: int | None = None
    split: bool = False
    first: float | None = None
    timings: tuple[Timing, ...] = ()
    holdings: tuple[Holding, ...] = ()


class CostResult(_Record):
    """All measurements of one command, and their conditions."""

    format: Literal["optbench-cost"]
    version: Literal[1]
    created: str
    command: tuple[str, ...]
    limit: int
    load: float | None = None
    provenance: dict[str, Any]
    rows: tuple[Row, ...] = ()


def save(result: CostResult, file: Path) -> None:
    """Write a result; raise StoreError if this fails."""
    write_text(file, json_text(result.model_dump(mode="json")))


def load(file: Path) -> CostResult:
    """Read a result.

    Raises:
        StoreError: the file cannot be read, or is not a result.
    """
    try:
        found = json_value(file, MAX_BYTES, "result of cost")
    except FileNotFoundError as error:
        raise StoreError(f"{file}: unreadable: {error.strerror}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise StoreError(f"{file}: expected a result of 'optbench cost', got another file")
    try:
        return CostResult.model_validate_json(json.dumps(found))  # strict, except for types that JSON lacks
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{file}: '{where}': {first['msg'][:1].lower()}{first['msg'][1:]}") from None


def find(text: str, runs_dir: Path) -> Path | None:
    """Return the file of a result named by path, or by name in `runs_dir`; None if there is none."""
    for file in (Path(text).expanduser(), runs_dir / text, runs_dir / f"{text}.json"):
        if file.suffix == ".json" and os.path.isfile(file):  # noqa: PTH113 (also False for a name that is too long)
            return file
    return None
