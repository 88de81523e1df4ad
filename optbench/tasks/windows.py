"""Examples for text tasks: windows drawn anew for every trial seed and task, and consecutive held-out windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from optbench.data.windows import Text, consecutive_windows, drawn_windows
from optbench.errors import UsageError, unknown
from optbench.kinds import Whole
from optbench.streams import generator
from optbench.tasks.examples import Examples, Part, Parts

if TYPE_CHECKING:
    from torch import Tensor

TokensPerTask = Annotated[Whole, Field(ge=1, le=10**9)]


class Windows:
    """Windows of text from a dataset's domains.

    A task trains on `tokens_per_task` tokens, rounded down to complete windows of the dataset's context. The positions
    of these windows in a domain's training text are random and depend only on the suite seed, trial seed and task.
    """

    def __init__(self, data: Parts, seed: int, tokens_per_task: int) -> None:
        """Raise UsageError if the dataset has no text domains, or a task would have no window."""
        if data.texts is None:
            raise UsageError("tasks.kind: expected a dataset with text domains, such as text-domains, got one without")
        self.texts: Mapping[str, Text] = data.texts
        (self._context,) = data.train.inputs.shape[1:]
        self.count = tokens_per_task // self._context
        if not self.count:
            raise UsageError(
                f"tasks.tokens_per_task: expected at least {self._context}, the context of one window, got "
                f"{tokens_per_task}"
            )
        self._parts, self._seed = data, seed

    def check_domain(self, key: str, name: str) -> None:
        """Raise UsageError if no domain is called `name`. key: the setting that contains the name."""
        if name not in self.texts:
            raise UsageError(f"tasks.{key}: {unknown('domain', name, self.texts)}")

    def of(self, domain: str, trial_seed: int, task: int, part: Part) -> Tensor:
        """Return the windows of a part of a task, int64 of shape (N, T + 1), on the CPU."""
        text = self.texts[domain]
        if part == "train":
            stream = generator(self._seed, trial_seed, f"windows of task {task}")
            return drawn_windows(text.train, self._context, self.count, stream)
        return consecutive_windows(getattr(text, part), self._context)

    def examples(self, windows: Tensor) -> Examples:
        """Return the inputs and next tokens of windows (N, T + 1), as views of one tensor on the data's device."""
        windows = windows.to(self._parts.train.targets.device)
        return Examples(windows[:, :-1], windows[:, 1:])
