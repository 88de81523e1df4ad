"""Losses and gradients of all members of a cohort, four ways that agree.

| module         | for              | how                                                                     |
|----------------|------------------|-------------------------------------------------------------------------|
| `mlp`          | plain MLPs, CPU  | forward and backward written out, member after member, no allocation    |
| `loop`         | any network, CPU | autograd, member after member; on any device where the network needs it |
| `mlp_together` | plain MLPs, GPU  | forward and backward written out, one call for all members              |
| `vmap`         | any network, GPU | `torch.func`, one call for all members; on a CPU as `chosen` has it     |

Which of them a model is trained by is for `ways` to say.

On one CPU thread a batched product is no faster than the products one by one (it is a loop inside the library), while
one member at a time keeps that member's weights and gradients in the cache; what batching saves there is the cost of
calling the framework, and the hand-written path saves more of it. It also makes bit-identity plain: a member's
arithmetic does not depend on how many others there are. On a GPU the opposite holds, and batching is everything.

In all of them, members that share a stream (those of one seed) share its batches: taken once a step.
"""

from __future__ import annotations

from optbench.engine.gradients.bound import Bound, Gradients, GradientsFactory
from optbench.engine.gradients.chosen import OtherBitsError
from optbench.engine.gradients.ways import Ways

__all__ = ["Bound", "Gradients", "GradientsFactory", "OtherBitsError", "Ways"]
