"""Count sketches: compressed weights of networks, from which distances between the networks can be estimated later.

Every weight is assigned one of K buckets and a sign at random. For each bucket, the sketch holds the signed sum of the
weights in it. The sketch is linear: S(a) - S(b) = S(a - b). The mean of ‖Sx‖² is ‖x‖², and its variance is

    (2/K) Σ_{i≠j} x_i² x_j²  ≤  (2/K) ‖x‖⁴,

so a distance estimated from two sketches has a relative error of about 1/√(2K), which is 2.2% for K = 1024.

Legend: P weights; K buckets; L weights in the fullest bucket.
Source: Charikar, Chen & Farach-Colton 2002. Weinberger et al. 2009 derive the variance for feature hashing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BUCKETS = 1024
"""The number of buckets K."""


@dataclass(frozen=True)
class CountSketch:
    """Random buckets and signs; only sketches from the same draw can be compared.

    places: (K, L) int64, the indices of the weights in each bucket. signs: (K, L) float64, ±1 for these weights, and 0
    for unused places of buckets with fewer than L weights.
    """

    places: Tensor
    signs: Tensor

    @staticmethod
    def draw(count: int, generator: torch.Generator, device: torch.device, buckets: int = BUCKETS) -> CountSketch:
        """Draw buckets and signs for `count` (P > 0) weights.

        generator: a CPU generator, so that the draw does not depend on the device.
        """
        bucket = torch.randint(buckets, (count,), generator=generator)
        sign = torch.randint(2, (count,), generator=generator).double() * 2 - 1
        order = bucket.argsort(stable=True)
        sizes = bucket.bincount(minlength=buckets)
        sorted_bucket = bucket[order]
        place_in_bucket = torch.arange(count) - (sizes.cumsum(0) - sizes)[sorted_bucket]
        places = torch.zeros(buckets, int(sizes.max()), dtype=torch.int64)
        signs = torch.zeros(places.shape, dtype=torch.float64)
        places[sorted_bucket, place_in_bucket] = order
        signs[sorted_bucket, place_in_bucket] = sign[order]
        return CountSketch(places.to(device), signs.to(device))

    @torch.no_grad()
    def __call__(self, weights: Tensor) -> Tensor:
        """Return the sketch (K,) float32 of weights (P,), summed in float64.

        The weights of each bucket are gathered and summed in a fixed order. `index_add` would not need a table of
        places, but is not deterministic on CUDA.
        """
        return (weights.double()[self.places] * self.signs).sum(1).float()
