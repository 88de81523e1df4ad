"""Random streams: every random number comes from a generator identified by (suite seed, trial seed, purpose).

No stream depends on another, on the global generator or on a trial's position in its cohort. Drawing more numbers from
one stream never changes another, and a trial draws the same numbers whether it is trained alone or in a cohort.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def stream_seed(suite_seed: int, trial_seed: int | None, purpose: str) -> int:
    """Return the stream's seed in [0, 2**63): the first 63 bits of a BLAKE2b hash of the three arguments.

    Args:
        suite_seed: the seed of the suite.
        trial_seed: the trial's seed, or None for streams that all trials share (such as the validation split).
        purpose: the use of the numbers, such as `"permutation 3"` or `"data order"`.
    """
    # JSON separates the parts: (1, 23, "x") and (12, 3, "x") give different texts, and None differs from the seed 0.
    name = json.dumps([suite_seed, trial_seed, purpose]).encode("ascii")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def generator(suite_seed: int, trial_seed: int | None, purpose: str) -> torch.Generator:
    """Return a new CPU generator seeded with `stream_seed`; equal arguments give equal draws.

    The generator is always on the CPU, so that a trial's permutations and weights are the same on every device.
    PyTorch's CPU generator (mt19937) keeps only the low 32 bits of its seed: the probability that two of n streams
    coincide is about n²/2**33, or 1e-4 for a thousand streams.
    """
    import torch

    return torch.Generator().manual_seed(stream_seed(suite_seed, trial_seed, purpose))
