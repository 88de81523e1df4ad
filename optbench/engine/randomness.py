"""The global random generators, lent to an optimizer that draws from them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

SEEDS = 2**31 - 1


@contextlib.contextmanager
def own_draws(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """PyTorch's and NumPy's global generators start from a draw of `generator`, and are put back after the block.

    So what an optimizer draws depends on its own trial alone, never on its companions or on who drew before.
    """
    seed = int(torch.randint(SEEDS, (), generator=generator))
    kept = np.random.get_state()  # noqa: NPY002  # the global one is what foreign code uses
    # Once a step and member, so not by `torch.manual_seed` and `fork_rng`, which take three times as long.
    before = torch.default_generator.get_state()
    with torch.random.fork_rng(devices=[device]) if device.type == "cuda" else contextlib.nullcontext():
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(kept)  # noqa: NPY002
            torch.default_generator.set_state(before)
