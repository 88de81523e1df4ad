"""The global random generators, seeded for an optimizer that draws from them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch

from optbench.isolation import seed_generators

SEEDS = 2**31 - 1


def own_draws(generator: torch.Generator, device: torch.device) -> AbstractContextManager[None]:
    """`seeded` by a draw of `generator`."""
    return seeded(int(torch.randint(SEEDS, (), generator=generator)), device)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's, NumPy's and Python's global generators start at `seed`, and are put back after the block.

    What an optimizer draws depends on its own trial alone, never on its companions or on who drew before.
    """
    kept = np.random.get_state()  # noqa: NPY002  # the global one is what foreign code uses
    kept_by_python = random.getstate()
    # Once a step and member, so not by `torch.manual_seed` and `fork_rng`, which take three times as long.
    before = torch.default_generator.get_state()
    with torch.random.fork_rng(devices=[device]) if device.type == "cuda" else contextlib.nullcontext():
        seed_generators(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(kept_by_python)
            np.random.set_state(kept)  # noqa: NPY002
            torch.default_generator.set_state(before)
