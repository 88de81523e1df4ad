"""The job of one worker: created by `session`, sent as JSON, read by `worker`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CostJob:
    """The measurement of one optimizer at one size.

    seconds: time for steps, for each number of threads, and for warm-up. limit: in bytes.
    """

    name: str
    target: str
    settings: Mapping[str, Any]
    size: str
    batch: int
    threads: tuple[int, ...]
    device: str
    steps: int
    seconds: float
    limit: int
    warm_up: int = 0
    twin: str | None = None
