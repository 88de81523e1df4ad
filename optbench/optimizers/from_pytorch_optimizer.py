"""Optimizers of the package pytorch-optimizer, which the extra `optimizers` installs. Imports neither it nor torch."""

from __future__ import annotations

from optbench.optimizers.spec import OptimizerSpec

PYTORCH_OPTIMIZER: tuple[OptimizerSpec, ...] = ()
