"""The job of one worker: created by `session`, sent as JSON, read by `worker`. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CostJob:
    """The measurement of one optimizer at one size.

    seconds: time limit for the steps with each number of threads, and for the warm-up. limit: memory limit in bytes.
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
