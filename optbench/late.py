"""Stand-ins for `torch` and `torch.nn` that import the modules on first use.

Modules that declare settings of kinds use these stand-ins, because reading a suite must not import torch.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    from torch import nn as nn
else:

    class _Late(ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self.__name__), name)

    torch, nn = _Late("torch"), _Late("torch.nn")
