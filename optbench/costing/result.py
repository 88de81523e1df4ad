"""What measurements end in: one JSON file, which `optbench report` renders. Imports no torch."""

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
"""Far above any such file."""
Status = Literal["ok", "too large", "too slow", "failed", "started"]
"""`too slow`: stopped; what its first step took is there, if it ended. `started`: never in a file."""


class _Record(Settings):
    # A file may come from a newer version that says more.
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Timing(_Record):
    """Seconds of a step on so many threads.

    clock: `processor`, time of one core, which other processes hardly change; `wall`; or `device`, its own events.
    after: the steps taken before.
    gradient, statistics, roots, update: means of the parts, the last three with refreshes as often as they come.
    ordinary: median of the optimizer's steps without a refresh, between low and high; refresh: mean of those with one.
    every: steps from one refresh to the next, None where there are none or they come by need; renewed: by need, the
    mean share of all roots that was renewed in a step.
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
        """Of the optimizer, refreshes included."""
        return self.statistics + self.roots + self.update


class Holding(_Record):
    """What the state holds for one kind of parameters: weights, bytes, and the sides of square factors in it."""

    kind: str
    weights: int
    bytes: int
    factors: tuple[int, ...] = ()


class Row(_Record):
    """One optimizer on one size.

    needed: estimated bytes at the peak; peak: measured; idle: of the process before it began. On a GPU the last two are
    the device's. first: seconds of the first step, which makes the state.
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
    """All measurements of one command, and what they depend on."""

    format: Literal["optbench-cost"]
    version: Literal[1]
    created: str
    command: tuple[str, ...]
    limit: int
    load: float | None = None
    provenance: dict[str, Any]
    rows: tuple[Row, ...] = ()


def save(result: CostResult, file: Path) -> None:
    """Write a result; raises StoreError."""
    write_text(file, json_text(result.model_dump(mode="json")))


def load(file: Path) -> CostResult:
    """Read a result.

    Raises:
        StoreError: it cannot be read, or is none.
    """
    try:
        found = json_value(file, MAX_BYTES, "result of cost")
    except FileNotFoundError as error:
        raise StoreError(f"{file}: unreadable: {error.strerror}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise StoreError(f"{file}: expected a result of 'optbench cost', got another file")
    try:
        return CostResult.model_validate_json(json.dumps(found))  # strict but for what JSON has no words for
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{file}: '{where}': {first['msg'][:1].lower()}{first['msg'][1:]}") from None


def find(text: str, runs_dir: Path) -> Path | None:
    """The file of a result that is named by its path, or by its name in `runs_dir`; None where there is none."""
    for file in (Path(text).expanduser(), runs_dir / text, runs_dir / f"{text}.json"):
        if file.suffix == ".json" and os.path.isfile(file):  # noqa: PTH113 (False for a name that is too long, too)
            return file
    return None
