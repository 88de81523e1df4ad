"""Text whose vocabulary is reshuffled for every task (a reduced permuted Shakespeare, arXiv:2410.20098)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from optbench.kinds import Whole
from optbench.late import torch
from optbench.streams import generator
from optbench.tasks.examples import Examples, Part, Parts
from optbench.tasks.kind import Outline
from optbench.tasks.windows import TokensPerTask, Windows

if TYPE_CHECKING:
    from torch import Tensor


class PermutedVocabulary:
    """Text of one domain; each task shuffles the vocabulary with one fixed random permutation.

    Task i replaces token v with p[v] in the inputs and targets of all three parts. The structure of the text stays the
    same, but knowledge about individual tokens no longer applies. Each trial seed and task has its own permutation p. A
    token of a byte-pair encoding is only replaced with a token of the same number of bytes, so that bits per byte are
    comparable between tasks. If tokens are bytes, any byte can be replaced with any other.

    `domain`: null for the dataset's first domain. Windows are drawn and held out as in the task sequence `domains`.
    """

    def __init__(
        self,
        data: Parts,
        seed: int,
        *,
        count: Annotated[Whole, Field(ge=1, le=10_000)] = 50,
        domain: str | None = None,
        tokens_per_task: TokensPerTask = 204_800,
    ) -> None:
        """Raise UsageError if the dataset has no text domains, or none with the given name."""
        self._windows, self._seed = Windows(data, seed, tokens_per_task), seed
        if domain is not None:
            self._windows.check_domain("domain", domain)
        self._domain = next(iter(self._windows.texts)) if domain is None else domain
        self._alike = torch.ones(data.classes, dtype=torch.int64) if data.token_bytes is None else data.token_bytes
        self.names = self.outline(data.classes, count=count).names

    @staticmethod
    def outline(classes: int, *, count: int, **_others: object) -> Outline:
        return Outline(tuple(f"vocabulary {i + 1}" for i in range(count)), classes)

    def key(self, trial_seed: int, task: int) -> Hashable:
        return "vocabulary", trial_seed, task

    def examples(self, trial_seed: int, task: int, part: Part) -> Examples:
        windows = self._windows.of(self._domain, trial_seed, task, part)
        return self._windows.examples(self.permutation(trial_seed, task)[windows])

    def train_sizes(self, trial_seeds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        yield trial_seeds[0], 0, self._windows.count  # the same in every task

    def permutation(self, trial_seed: int, task: int) -> Tensor:
        """Return the replacement of each token: int64, (V,)."""
        order = torch.randperm(len(self._alike), generator=generator(self._seed, trial_seed, f"vocabulary {task}"))
        # Stable sorts by length pair the tokens of each length, in ascending order, with the same ones in random order.
        own, drawn = self._alike.argsort(stable=True), order[self._alike[order].argsort(stable=True)]
        return torch.empty_like(own).scatter_(0, own, drawn)
