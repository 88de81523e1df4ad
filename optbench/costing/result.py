"""The result of the measurements: a JSON file, which `optbench report` renders. Does not import torch."""

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
"""`too slow`: stopped at the time limit; the row has the time of the first step if that step finished. `started`: the
row of a worker that has taken only its first step so far; never written to a file."""


class _Record(Settings):
    # A file of a newer version may have more keys.
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Timing(_Record):
    """Times, in seconds, of a training step with a given number of threads.

    clock: `processor` (CPU time, which other processes hardly affect), `wall` or `device` (time between device events).
    after: number of steps taken before the measured ones.
    steps: number of measured steps.
    gradient, statistics, roots, update: mean times of the parts of a step. In the last three, steps with a refresh are
        weighted by their frequency in normal training.
    ordinary, low, high: median, minimum and maximum of the optimizer's time in steps without a refresh.
    refresh: mean of the optimizer's time in steps with a refresh; None if there are none.
    every: number of steps between refreshes; None if there are none, or if roots are renewed by need.
    renewed: mean share of roots renewed per step; None unless roots are renewed by need.
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
        """The optimizer's mean time per step in seconds, including refreshes."""
        return self.statistics + self.roots + self.update


class Holding(_Record):
    """The optimizer's state for one kind of parameter.

    weights: number of weights of this kind.
    bytes: size of their state.
    factors: the largest distinct side lengths of square factors in the state, in descending order.
    """

    kind: str
    weights: int
    bytes: int
    factors: tuple[int, ...] = ()


class Row(_Record):
    """The measurement of one optimizer at one size.

    note: why the measurement failed or, if it succeeded, a caveat; empty if there is none.
    idle: memory of the process before the measurement, in bytes.
    needed, peak: estimated and measured peak memory, in bytes: the device's memory on a GPU, the process's memory
        otherwise.
    state, planned_state: measured and estimated size of the optimizer's state, in bytes.
    split: whether the optimizer marks the parts of its step, so that their times are known.
    first: the optimizer's time for the first step, in seconds, including the creation of its state.
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
    """All measurements made by one command, and the conditions under which they were made."""

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
    """Return the file of a result, given its path or its name in `runs_dir`; None if there is no such file."""
    for file in (Path(text).expanduser(), runs_dir / text, runs_dir / f"{text}.json"):
        if file.suffix == ".json" and os.path.isfile(file):  # noqa: PTH113 (also False for a name that is too long)
            return file
    return None
