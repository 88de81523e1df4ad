"""Losses and gradients of all members of a cohort, computed in one of four equivalent ways.

| module         | for              | how                                                                     |
|----------------|------------------|-------------------------------------------------------------------------|
| `mlp`          | plain MLPs, CPU  | forward and backward written out, member by member, no allocation       |
| `loop`         | any network, CPU | autograd, member by member; on any device if the network needs it       |
| `mlp_together` | plain MLPs, GPU  | forward and backward written out, one call for all members              |
| `vmap`         | any network, GPU | `torch.func`, one call for all members; on a CPU see `chosen`           |

`ways` selects one for each model.

On one CPU thread, a batched product is no faster than separate products, because the BLAS library loops over them.
Processing one member at a time keeps the member's weights and gradients in the cache. Batching would only save
framework overhead, of which the explicit backpropagation in `mlp` saves more. Processing members one at a time also
guarantees bit-identity, because a member's arithmetic does not depend on the number of other members. On a GPU, in
contrast, batching is essential.

In all four ways, members with the same stream (members of one seed) share batches, which are taken once per step.
"""

from __future__ import annotations

from optbench.engine.gradients.bound import Bound, Gradients, GradientsFactory
from optbench.engine.gradients.chosen import OtherBitsError
from optbench.engine.gradients.ways import Ways

__all__ = ["Bound", "Gradients", "GradientsFactory", "OtherBitsError", "Ways"]
