"""Models: plain modules for a single network, which the engine stacks to train several members together."""

from __future__ import annotations

from optbench.models.build import build, initialise
from optbench.models.network import Network, cross_entropy, materialised

__all__ = ["Network", "build", "cross_entropy", "initialise", "materialised"]
