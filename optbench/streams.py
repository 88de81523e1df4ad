"""Random streams: everything random is drawn from a generator named by (suite seed, trial seed, purpose).

No stream depends on another, on the global generator or on the position of a trial in its cohort, so drawing
more from one of them never changes what another gives, and a trial alone draws what it draws among others.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def stream_seed(suite_seed: int, trial_seed: int | None, purpose: str) -> int:
    """The seed in [0, 2**63) of the stream with this name: the first 63 bits of BLAKE2b over the three parts.

    Args:
        suite_seed: the suite's own seed.
        trial_seed: the trial's seed, or None for what all trials share (such as the validation split).
        purpose: what the numbers are for, in words: `"permutation 3"`, `"data order"`.
    """
    # JSON keeps the parts apart: (1, 23, "x") and (12, 3, "x") are different texts, and None is not the seed 0.
    name = json.dumps([suite_seed, trial_seed, purpose]).encode("ascii")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def generator(suite_seed: int, trial_seed: int | None, purpose: str) -> torch.Generator:
    """A fresh CPU generator at the start of the stream `stream_seed` names; equal arguments give equal draws.

    It lives on the CPU whatever the device, so that a trial's permutations and weights are the same everywhere.
    PyTorch's CPU generator (mt19937) keeps only the low 32 bits of its seed: among n streams two coincide with
    probability about n²/2**33, 1e-4 for a thousand.
    """
    import torch

    return torch.Generator().manual_seed(stream_seed(suite_seed, trial_seed, purpose))
