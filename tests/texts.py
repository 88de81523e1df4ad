"""A small text whose next token can be learnt, with the number of bytes per token, and a suite for it."""

from __future__ import annotations

from typing import Any

import torch

from optbench import Dataset, Split
from optbench.suite import Suite
from optbench.tasks import Examples
from optbench.tasks.examples import Part, Parts
from tests.conftest import small_suite

VOCABULARY = 11
GPT = {"kind": "gpt", "layers": 1, "width": 16, "heads": 2}
TASKS = {"kind": "tests.texts:Renamed", "count": 2}
PROTOCOL: dict[str, Any] = {
    "batch_size": 8,
    "max_epochs": 2,
    "train_examples": 64,
    "validation_examples": 16,
    "test_examples": 24,
}


class Renamed:
    """A task sequence: the original text, then the text with token k renamed to 2k, and so on."""

    def __init__(self, data: Parts, seed: int, count: int = 2) -> None:
        self._data = data
        self.names = [f"times {2**task}" for task in range(count)]

    def examples(self, trial_seed: int, task: int, part: Part) -> Examples:
        plain = self._data[part]
        return Examples(*(2**task * tokens % self._data.classes for tokens in (plain.inputs, plain.targets)))


def small_text(train: int = 96, test: int = 24, length: int = 12, vocabulary: int = VOCABULARY) -> Dataset:
    """Return windows of a walk around a circle of tokens in steps of 1 or 2; every third token has two bytes."""
    draws = torch.Generator().manual_seed(5)

    def split(size: int) -> Split:
        steps = torch.randint(1, 3, (size, length), generator=draws)
        start = torch.randint(0, vocabulary, (size, 1), generator=draws)
        tokens = torch.cat([start, start + steps.cumsum(1)], 1) % vocabulary
        return Split(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    token_bytes = 1 + (torch.arange(vocabulary) % 3 == 0).long()
    return Dataset("small text", split(train), split(test), vocabulary, token_bytes=token_bytes)


def text_suite(
    optimizer: dict[str, Any], model: dict[str, Any] = GPT, metrics: list[str] | None = None, **protocol: Any
) -> Suite:
    """Return a suite of two seeds of a small transformer on two tasks: the text, and the text with renamed tokens."""
    settings = {"tasks": TASKS, "model": model, "metrics": metrics, "seeds": 2, **PROTOCOL, **protocol}
    return small_suite({"opt": optimizer}, **settings)
