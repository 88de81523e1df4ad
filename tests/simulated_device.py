"""A device simulated on the CPU: its tensors appear to be on another device, while the CPU computes.

As on a GPU, an operation on tensors of two devices raises, and tensors must be moved to the CPU before they are passed
to NumPy. Synchronising operations and transfers are counted. PyTorch allows one such device per process and keeps it,
so code that uses it runs in separate processes (`test_simulated_device.py`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
MOVES = ("aten._to_copy", "aten.copy_")
ASKS = ("aten._local_scalar_dense", "aten.equal", "aten.nonzero", "aten.masked_select", "aten.is_nonzero")
INDEXES = ("aten.index.", "aten.index_put", "aten._index_put")
"""Operations that also accept indices on the CPU."""

asked: Counter[str] = Counter()
"""Number of times each operation synchronised with the device to read a value."""
without: list[torch.dtype] = []
"""Data types that the device does not support."""
crossed: Counter[str] = Counter()
"""Number of transfers `to` the device and `from` it."""


def device() -> torch.device:
    """Return the device, creating it at the first call."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME)
    return torch.device(NAME, 0)


class There(Tensor):
    """A tensor on the device, whose values are in the CPU tensor `here`."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        if here.dtype in without:
            raise TypeError(f"{NAME} has no {here.dtype}")
        place = here.shape, here.stride(), here.storage_offset()
        made = Tensor._make_wrapper_subclass(cls, *place, dtype=here.dtype, device=device())
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return do(func, args, kwargs or {})

    def tolist(self) -> Any:
        asked["tolist"] += 1
        return self.here.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.here.untyped_storage()


def do(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Execute an operation with arguments or a result on the device."""
    name = str(func)
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = [t for t in tensors if isinstance(t, There)]
    wanted = kwargs.get("device")
    result_there = bool(there) if wanted is None else torch.device(wanted).type == NAME
    if name.startswith(MOVES):
        if name.startswith("aten.copy_"):
            source, result_there = isinstance(args[1], There), isinstance(args[0], There)
        else:
            source = bool(there)
        if source != result_there:
            crossed["to" if result_there else "from"] += 1
    elif there and name.startswith(INDEXES):
        crossed["to"] += any(not isinstance(t, There) for t in tensors)
    elif there:
        # A scalar tensor on the CPU is allowed as an argument of a kernel.
        away = [t for t in tensors if not isinstance(t, There) and t.ndim]
        if away:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found {NAME} and cpu")
    if there and name.startswith(ASKS):
        asked[name] += 1
    args, kwargs = tree_map(lambda t: t.here if isinstance(t, There) else t, (args, kwargs))
    found = func(*args, **(kwargs if wanted is None else kwargs | {"device": torch.device("cpu")}))
    written = {id(t.here): t for t in there}

    def back(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return written.get(id(value)) if id(value) in written else There(value) if result_there else value

    return tree_map(back, found)


class Simulated(TorchDispatchMode):
    """A mode within which tensors can be created on the device."""

    def __enter__(self) -> Simulated:
        device()
        # `torch.tensor` then creates its tensor on the CPU, and this mode sees the move to the device.
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return do(func, args, kwargs or {})
