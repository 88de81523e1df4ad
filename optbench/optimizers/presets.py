"""Shampoo's presets: which form of the method, as values of its hyper-parameters. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHAMPOO_PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Gupta, Koren & Singer 2018, Algorithm 1.
    "gupta": {
        "lr": 1e-1,
        "momentum": 0.0,
        "beta2": 1.0,
        "initial_epsilon": 1e-6,
        "momentum_form": "heavy-ball",
        "grafting": "none",
    },
    # Anil et al. 2020, with Adam's step lengths: against Adam, only the direction differs.
    "adam-grafted": {
        "lr": 1e-3,
        "momentum": 0.9,
        "beta2": 0.999,
        "initial_epsilon": 0.0,
        "momentum_form": "average",
        "grafting": "adam",
    },
}
