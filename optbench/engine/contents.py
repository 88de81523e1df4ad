"""The data that a Python object holds, and a digest of the data.

An optimizer and a copy restored from its `state_dict()` have equal digests if nothing was lost.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import sys
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_TEXTS = (type(None), bool, int, float, complex, str, bytes, range, slice, np.generic, torch.dtype, torch.device)
_CODE = (type, types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
_CONTAINERS = (list, tuple, set, frozenset, collections.deque)
_DERIVED = ("defaults", "_numel_cache", "_need_device_dtype_check_for_fused")
"""Attributes of PyTorch's optimizers that are not state: `load_state_dict` adds to `defaults`; the rest are caches."""


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each part of an object, in the same order for equal objects.

    value: any object except a number, a string or a tensor.
    """
    if isinstance(value, Mapping):
        yield from sorted(((_text(key), item) for key, item in value.items()), key=lambda part: part[0])
    elif isinstance(value, set | frozenset):
        yield from ((text, None) for text in sorted(map(_text, value)))
    elif isinstance(value, _CONTAINERS):
        yield from ((str(i), item) for i, item in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield from ((value.__name__, None), ("self", value.__self__))
    elif isinstance(value, types.FunctionType):
        yield value.__qualname__, None
        cells = [cell for cell in value.__closure__ or () if cell != types.CellType()]
        yield from ((f"{value.__qualname__} {i}", cell.cell_contents) for i, cell in enumerate(cells))
        yield from (("defaults", (value.__defaults__, value.__kwdefaults__)), ("attributes", vars(value)))
    if not isinstance(value, types.FunctionType | types.MethodType | functools.partial):
        yield from _fields(value)


def digest(value: Any, known: Sequence[object] = ()) -> bytes:
    """Return a digest of all numbers, text, tensors and random states reachable from `value`.

    The digest also depends on which tensors share memory. Exceptions raised by objects that cannot be inspected, such
    as a lock or an open file, propagate.

    known: objects that are represented by their index in this sequence instead of their content.
    """
    reader = _Reader(known)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # `__reduce__` of some iterators is deprecated
        reader.read("", value)
    return reader.hash.digest()


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    kind = type(value)
    if _is_standard(kind):  # e.g. a logger refers to all other loggers; `__reduce__` describes such objects instead
        return
    slots = {name for cls in kind.__mro__ for name in _names(vars(cls).get("__slots__", ()))}
    found = {**{name: getattr(value, name, None) for name in slots}, **getattr(value, "__dict__", {})}
    names = found.keys() - {*getattr(kind, "SCRATCH", ())}
    if isinstance(value, torch.optim.Optimizer):  # hooks have keys from a process-wide counter
        names = {name for name in names if name not in _DERIVED and not name.startswith("_optimizer_")}
    yield from ((name, found[name]) for name in sorted(names))


def _is_standard(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in sys.stdlib_module_names


def _names(slots: Any) -> Iterable[str]:
    return [slots] if isinstance(slots, str) else slots


def _text(key: Any) -> str:
    """Return a key as text; objects whose text may contain an address are represented only by their type."""
    return f"{type(key).__name__} {key!r}" if isinstance(key, (*_TEXTS, tuple)) else type(key).__name__


class _Reader:
    def __init__(self, known: Sequence[object]) -> None:
        self._known = {id(thing): i for i, thing in enumerate(known)}
        self._met: dict[int, int] = {}
        self._open: set[int] = set()
        self._storages = {place(thing): -1 - i for i, thing in enumerate(known) if isinstance(thing, Tensor)}
        self._kept: list[object] = []  # ids are unique only while all objects are alive
        self.hash = hashlib.blake2b(digest_size=16)

    def read(self, name: str, value: Any) -> None:
        self._say(name, type(value).__name__)
        if isinstance(value, _TEXTS):
            self._say(repr(value))
        elif isinstance(value, _CODE):
            self._say(getattr(value, "__qualname__", value.__name__))
        elif id(value) in self._known:
            self._say("known", self._known[id(value)])
        elif isinstance(value, (*_CONTAINERS, Mapping)):
            self._container(value)
        elif id(value) in self._met:
            self._say("again", self._met[id(value)])
        else:
            self._met[id(value)] = len(self._met)
            self._kept.append(value)
            self._object(value)

    def _say(self, *words: object) -> None:
        self.hash.update("\0".join(map(str, words)).encode() + b"\1")

    def _container(self, value: Any) -> None:
        """Digest a container in full even if it was digested before; stop at references to enclosing containers.

        Sharing must not affect the digest, because a restored optimizer may have copies of a container that the
        original shares, such as the `betas` in its parameter groups and in its defaults.
        """
        if id(value) in self._open:
            self._say("open")
            return
        self._open.add(id(value))
        self._say(len(value), getattr(value, "maxlen", None))
        self._parts(value)
        self._open.remove(id(value))

    def _parts(self, value: Any) -> None:
        for name, part in parts(value):
            self.read(name, part)

    def _object(self, value: Any) -> None:
        kind = type(value)
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._say(value.dtype, value.shape)
            self.hash.update(value.tobytes())
        elif isinstance(value, torch.Generator):
            self.hash.update(value.get_state().numpy().tobytes())
        else:
            for name in getattr(kind, "SCRATCH", ()):
                self._known.setdefault(id(getattr(value, name, None)), len(self._known))
            self._parts(value)
            own = any("__reduce__" in vars(cls) or "__reduce_ex__" in vars(cls) for cls in kind.__mro__[:-1])
            own = own or _is_standard(kind)
            in_code = isinstance(value, types.FunctionType | types.MethodType | functools.partial)
            if (own or not hasattr(value, "__dict__")) and not in_code and not isinstance(value, nn.Module):
                self.read("reduced", value.__reduce_ex__(4))

    def _tensor(self, value: Tensor) -> None:
        if value.layout is not torch.strided:
            raise TypeError("expected a dense tensor, got a sparse one")
        number = self._storages.setdefault(place(value), len(self._storages))
        self._say(value.dtype, tuple(value.shape), value.requires_grad, value.device.type, number)
        if number < 0:
            self._say(value.storage_offset())
        else:
            flat = value.detach().resolve_conj().resolve_neg().cpu().contiguous().view(-1)
            self.hash.update(flat.view(torch.uint8).numpy().tobytes())


def place(tensor: Tensor) -> int:
    """Return the address of a tensor's memory, or the tensor's id if it is empty and has no memory."""
    return tensor.untyped_storage().data_ptr() or id(tensor)
