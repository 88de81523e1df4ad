"""A worker's job: created by `session`, sent as JSON and read by `worker`. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CostJob:
    """A request to measure one optimizer at one size.

    batch: number of sequences per step.
    threads: numbers of threads to measure with, in order.
    steps: maximum number of measured steps for each number of threads.
    seconds: time limit, in seconds, for the warm-up and, with each number of threads, for the measured steps.
    limit: memory limit in bytes.
    warm_up: maximum number of steps between the first step and the measured ones.
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
