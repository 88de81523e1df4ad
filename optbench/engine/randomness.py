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
    return seeded(draw_seed(generator), device)


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed."""
    return int(torch.randint(SEEDS, (), generator=generator))


def seed_all(seed: int, device: torch.device) -> None:
    """Start PyTorch's, NumPy's and Python's global generators at `seed`, those of a CUDA `device` included."""
    seed_generators(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """`seed_all`, with the generators put back after the block.

    What an optimizer draws depends on its own trial alone, never on its companions or on who drew before.
    """
    with kept(device):
        seed_all(seed, device)
        yield


@contextlib.contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """Put the global generators back after the block.

    That takes .2 ms, nearly all of it for NumPy's. So the steps of a stack are in one such block, and each draw within
    it only seeds.
    """
    numpy = np.random.get_state()  # noqa: NPY002  # the global one is what foreign code uses
    python = random.getstate()
    # Not by `fork_rng`, which takes three times as long.
    before = torch.default_generator.get_state()
    with torch.random.fork_rng(devices=[device]) if device.type == "cuda" else contextlib.nullcontext():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            torch.default_generator.set_state(before)
