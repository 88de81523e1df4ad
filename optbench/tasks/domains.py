"""Text domains learnt in sequence: continual pre-training."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator

from optbench.errors import UsageError, hint
from optbench.late import torch
from optbench.streams import generator
from optbench.tasks.examples import Examples, Part, Parts
from optbench.tasks.kind import Outline
from optbench.tasks.windows import TokensPerTask, Windows


def _one_of(order: object) -> object:
    """Validate an order, and report one fault instead of one for each alternative of the union."""
    if isinstance(order, list | tuple) and len(order) and all(isinstance(name, str) for name in order):
        return tuple(order)
    if order in ("fixed", "shuffled"):
        return order
    meant = hint(order, ("fixed", "shuffled"))
    raise ValueError(f"expected fixed, shuffled or a list of domains, got {order!r}{meant}")


Order = Annotated[Literal["fixed", "shuffled"] | tuple[str, ...], BeforeValidator(_one_of)]


class Domains:
    """Text domains learnt in sequence: each task is next-token prediction in one domain.

    The training set of a task has `tokens_per_task` tokens, in windows at random positions in the domain's training
    text, drawn separately for each trial seed and task. The validation and test sets are consecutive windows of
    held-out text, at most `validation_examples` and `test_examples` of them.

    `order`: `fixed`, the dataset's order; `shuffled`, a random order for each trial seed; or a list of domains.
    """

    def __init__(
        self, data: Parts, seed: int, *, order: Order = "fixed", tokens_per_task: TokensPerTask = 1_024_000
    ) -> None:
        """Raise UsageError if the dataset has no text domains, or `order` contains an unknown or repeated domain."""
        self._windows, self._seed = Windows(data, seed, tokens_per_task), seed
        if not isinstance(order, str):
            for i, name in enumerate(order):
                self._windows.check_domain(f"order.{i}", name)
                if name in order[:i]:
                    raise UsageError(f"tasks.order.{i}: expected each domain once, got '{name}' again")
        self._domains = tuple(self._windows.texts) if isinstance(order, str) else tuple(order)
        self._shuffled = order == "shuffled"
        self._held_out: dict[tuple[str, Part], Examples] = {}
        self.names = self.outline(data.classes, order=order, domains=self._domains).names

    @staticmethod
    def outline(classes: int, *, order: str | Sequence[str], domains: Sequence[str] = (), **_others: object) -> Outline:
        """Return the outline of the tasks. domains: the names of the dataset's domains."""
        names = tuple(domains if isinstance(order, str) else order)
        if order == "shuffled":
            return Outline(tuple(f"domain {i + 1}" for i in range(len(names))), classes)
        return Outline(names, classes, ticks=names, axis="domain")

    def key(self, trial_seed: int, task: int) -> Hashable:
        return "domain", trial_seed, task

    def examples(self, trial_seed: int, task: int, part: Part) -> Examples:
        domain = self.domains(trial_seed)[task]
        if part == "train":
            return self._windows.examples(self._windows.of(domain, trial_seed, task, part))
        # kept because they are few and the same for all trial seeds; sharing them allows members on the same domain to
        # be scored together
        place = domain, part
        if place not in self._held_out:
            self._held_out[place] = self._windows.examples(self._windows.of(domain, trial_seed, task, part))
        return self._held_out[place]

    def train_sizes(self, trial_seeds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        yield trial_seeds[0], 0, self._windows.count  # the same in every task

    def domains(self, trial_seed: int) -> tuple[str, ...]:
        """Return the domain of each task for a trial seed."""
        if not self._shuffled:
            return self._domains
        order = torch.randperm(len(self._domains), generator=generator(self._seed, trial_seed, "order of domains"))
        return tuple(self._domains[i] for i in order.tolist())
