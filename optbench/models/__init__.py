"""Models: plain modules, each for a single network. To train several members together, the engine stacks networks."""

from __future__ import annotations

from optbench.models.build import build, initialise
from optbench.models.network import Network, cross_entropy, materialised

__all__ = ["Network", "build", "cross_entropy", "initialise", "materialised"]
