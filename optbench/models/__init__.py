"""Models: plain modules written for one network; the engine adds the member axis."""

from __future__ import annotations

from optbench.models.build import build, initialise
from optbench.models.network import Network, cross_entropy, materialised

__all__ = ["Network", "build", "cross_entropy", "initialise", "materialised"]
