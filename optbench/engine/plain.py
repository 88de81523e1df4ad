"""Optimizers and their states as plain data, and back: what a trial goes on from in another process.

No pickle: nothing that is read here runs code. An optimizer is a graph of Python objects. What of it is numbers, texts,
tensors and containers is written down; what is code (functions, classes) is not, and neither are the objects that both
sides have (the network's parameters, the trial's generator). So an optimizer is restored *into* one that was made anew
by the same constructor, which has all that is code. Whatever cannot be restored in this way raises `NotPlain`.
"""

from __future__ import annotations

import collections
import json
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optbench.engine.faults import is_out_of_memory

_FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (dict, list, set, int, float)}
_CODE_TAGS = frozenset({"code", "function", "method"})
_CODE = (types.BuiltinFunctionType, types.ModuleType, type)


class NotPlain(Exception):
    """A state holds something that is neither data nor in an optimizer that was just made."""


@dataclass(frozen=True)
class Plain:
    """A graph of objects, written down."""

    tree: Any
    """Of what JSON has."""
    storages: tuple[Tensor, ...]
    """The bytes (n,) that the tensors in it lie in, on the CPU; tensors that shared memory share it again."""
    alive: tuple[object, ...] = ()
    """The objects that were written, in the process that wrote them; no part of the record. Kept alive so that no other
    object gets one of their ids."""

    def equals(self, other: Plain) -> bool:
        """Whether both are the same to the last bit."""
        return (
            self.tree == other.tree
            and len(self.storages) == len(other.storages)
            and all(map(torch.equal, self.storages, other.storages))
        )


def to_plain(value: Any, known: Sequence[object] = ()) -> Plain:
    """Write `value` down. known: objects that are only named, as both sides have them.

    Raises:
        NotPlain: something in it is no data.
    """
    writer = _Writer(known)
    tree = writer.tree(value)
    return Plain(tree, writer.bytes(), writer.alive)


def from_plain(plain: Plain, known: Sequence[object] = (), into: Any = None, device: torch.device | None = None) -> Any:
    """What was written down. known: as then, in the same order. into: an optimizer just made, or what holds one: it
    becomes the one written down, and is returned. device: of the tensors that were on one; those on the CPU are again.

    Raises:
        NotPlain: the two do not fit together.
    """
    try:
        return _Reader(plain, known, device or torch.device("cpu")).value(plain.tree, into)
    except NotPlain:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise NotPlain(f"what was written down does not fit: {type(error).__name__}: {error}") from error


def _name(code: Any) -> str:
    return f"{getattr(code, '__module__', '')}:{getattr(code, '__qualname__', None) or code.__name__}"


class _Writer:
    def __init__(self, known: Sequence[object]) -> None:
        self._known = {id(thing): i for i, thing in enumerate(known)}
        self._shared = {
            thing.untyped_storage().data_ptr(): i for i, thing in enumerate(known) if isinstance(thing, Tensor)
        }
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []  # no id is used twice while all are alive
        self._storages: dict[int, int] = {}
        self._spans: list[tuple[torch.UntypedStorage, int, int]] = []

    @property
    def alive(self) -> tuple[object, ...]:
        return tuple(self._kept)

    def bytes(self) -> tuple[Tensor, ...]:
        return tuple(
            torch.tensor((), dtype=torch.uint8, device=storage.device).set_(storage)[start:stop].cpu().clone()
            for storage, start, stop in self._spans
        )

    def tree(self, value: Any) -> Any:
        """`value` in what JSON has; a float by its bits, an object that was met before by its number."""
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return {"float": value.hex()}
        if id(value) in self._known:
            return {"known": self._known[id(value)]}
        if id(value) in self._numbers:
            return {"again": self._numbers[id(value)]}
        if kind in (tuple, torch.Size):
            return {"size" if kind is torch.Size else "tuple": [self.tree(item) for item in value]}
        if kind is slice:
            return {"slice": [self.tree(item) for item in (value.start, value.stop, value.step)]}
        if kind in (torch.dtype, torch.device):
            return {kind.__name__: str(value)}
        if isinstance(value, np.generic):
            return {"scalar": value.dtype.str, "bytes": value.tobytes().hex()}
        if isinstance(value, _CODE):
            return {"code": _name(value)}
        self._numbers[id(value)] = len(self._numbers)
        self._kept.append(value)
        return self._object(value, kind)

    def _object(self, value: Any, kind: type) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if kind is np.ndarray and not value.dtype.hasobject and value.base is None:
            return {"array": value.dtype.str, "shape": list(value.shape), "bytes": value.tobytes().hex()}
        if kind is list:
            return {"list": [self.tree(item) for item in value]}
        if kind in (set, frozenset):  # whose order is no part of them, and differs between equal ones
            return {kind.__name__: sorted((self.tree(item) for item in value), key=json.dumps)}
        if kind is collections.deque:
            return {"deque": [self.tree(item) for item in value], "most": value.maxlen}
        if kind in (dict, collections.OrderedDict):
            return {kind.__name__: self._items(value)}
        if kind is collections.defaultdict:
            factory = value.default_factory
            if factory not in _FACTORIES.values():
                raise NotPlain(f"a defaultdict of {factory!r}")
            return {"defaultdict": self._items(value), "of": factory.__name__}
        if kind is torch.Generator:
            return {"generator": bytes(value.get_state().tolist()).hex()}
        if kind is types.FunctionType:
            cells = [self.tree(cell.cell_contents) for cell in value.__closure__ or ()]
            return {"function": _name(value), "cells": cells}
        if kind is types.MethodType:
            return {"method": value.__name__, "of": self.tree(value.__self__)}
        if _is_data(kind) and not isinstance(value, nn.Module):
            return {"object": _name(kind), "fields": {name: self.tree(field) for name, field in _fields(value)}}
        raise NotPlain(f"an object of the type {_name(kind)}")

    def _items(self, value: Mapping[Any, Any]) -> list[Any]:
        return [[self.tree(key), self.tree(item)] for key, item in value.items()]

    def _tensor(self, value: Tensor) -> Any:
        odd = value.is_conj() or value.is_neg() or value.layout is not torch.strided
        if odd or _has_graph(value) or type(value) not in (Tensor, nn.Parameter):
            raise NotPlain("a tensor with a graph, or of a kind of its own")
        storage, size = value.untyped_storage(), value.element_size()
        start = int(value.storage_offset()) * size
        # The last byte that it reaches, be it contiguous or not.
        reach = sum((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True))
        stop = start + (int(reach) + 1) * size if value.numel() else start
        found: dict[str, Any] = {
            "tensor": str(value.dtype),
            "shape": list(value.shape),
            "stride": list(value.stride()),
            "start": start,
            "grad": value.requires_grad,
            "parameter": isinstance(value, nn.Parameter),
            "cpu": value.device.type == "cpu",
        }
        if storage.data_ptr() in self._shared and storage.nbytes():
            return {**found, "in known": self._shared[storage.data_ptr()]}
        # Storages of no bytes have no place; each is its own.
        place = storage.data_ptr() or id(storage)
        if place not in self._storages:
            self._storages[place] = len(self._spans)
            self._spans.append((storage, start, stop))
            # Of a batch, say, that lies in a whole data set, only the part is kept; but 64 bytes are never cut, as how
            # a kernel rounds may depend on them.
        i = self._storages[place]
        _, a, b = self._spans[i]
        self._spans[i] = (storage, min(a, start) // 64 * 64, max(b, stop))
        return {**found, "in": i}


class _Reader:
    def __init__(self, plain: Plain, known: Sequence[object], device: torch.device) -> None:
        self._known = known
        self._device = device
        self._met: list[Any] = []
        # What is at work in this process is not to be changed, wherever a constructor may have handed it out again.
        self._taken: set[int] = {id(thing) for thing in plain.alive}
        self._modules: set[str] = set()
        self._plain = plain
        self._starts = self._find_starts(plain.tree)
        self._storages: dict[int, torch.UntypedStorage] = {}

    def value(self, tree: Any, made: Any) -> Any:
        """What `tree` says. made: what the new optimizer has in its place, or None."""
        if not isinstance(tree, dict):
            return tree
        (tag, content), *_ = tree.items()
        if tag == "float":
            return float.fromhex(content)
        if tag == "known":
            return self._known[content]
        if tag == "again":
            return self._met[content]
        if tag in ("tuple", "size"):
            found = [self.value(item, there) for item, there in _beside(content, made)]
            return torch.Size(found) if tag == "size" else tuple(found)
        if tag == "slice":
            return slice(*(self.value(item, None) for item in content))
        if tag == "dtype":
            return _dtype(content)
        if tag == "device":
            return torch.device(content)
        if tag == "scalar":
            return np.frombuffer(bytes.fromhex(tree["bytes"]), np.dtype(content))[0]
        if tag == "code":
            return _same_code(made, _CODE, content, _name(made) if isinstance(made, _CODE) else "")
        return self._object(tag, content, tree, made)

    def _object(self, tag: str, content: Any, tree: Mapping[str, Any], made: Any) -> Any:
        number = len(self._met)
        self._met.append(None)
        if tag == "tensor":
            return self._numbered(number, self._tensor(tree, made))
        if tag == "array":
            array = np.frombuffer(bytes.fromhex(tree["bytes"]), np.dtype(content)).reshape(tree["shape"]).copy()
            return self._numbered(number, array)
        if tag == "generator":
            generator = self._mine(made, torch.Generator)
            generator.set_state(torch.tensor(list(bytes.fromhex(content)), dtype=torch.uint8))
            return self._numbered(number, generator)
        if tag == "function":
            return self._function(number, tree, made)
        if tag == "method":
            made = self._numbered(number, _same_code(made, types.MethodType, content, getattr(made, "__name__", "")))
            self.value(tree["of"], made.__self__)
            return made
        if tag == "object":
            return self._instance(number, tree, made)
        return self._container(number, tag, content, tree, made)

    def _container(self, number: int, tag: str, content: Any, tree: Mapping[str, Any], made: Any) -> Any:
        if tag == "frozenset":
            return self._numbered(number, frozenset(self.value(item, None) for item in content))
        found: Any
        if tag == "list":
            found = self._numbered(number, self._mine(made, list))
            found[:] = [self.value(item, there) for item, there in _beside(content, list(found))]
        elif tag == "set":
            found = self._numbered(number, self._mine(made, set))
            items = [self.value(item, None) for item in content]
            found.clear()
            found.update(items)
        elif tag == "deque":
            same = made if getattr(made, "maxlen", None) == tree["most"] else None
            new: Callable[[], Any] = partial(collections.deque, maxlen=tree["most"])
            found = self._numbered(number, self._mine(same, collections.deque, new))
            items = [self.value(item, there) for item, there in _beside(content, list(found))]
            found.clear()
            found.extend(items)
        elif tag in ("dict", "OrderedDict", "defaultdict"):
            found = self._numbered(number, self._mapping(tag, tree, made))
            self._fill(found, content)
        else:
            raise NotPlain(f"'{tag}', which nothing is written as")
        return found

    def _mapping(self, tag: str, tree: Mapping[str, Any], made: Any) -> Any:
        if tag != "defaultdict":
            return self._mine(made, dict if tag == "dict" else collections.OrderedDict)
        factory = _FACTORIES[tree["of"]]
        same = made if getattr(made, "default_factory", None) is factory else None
        return self._mine(same, collections.defaultdict, partial(collections.defaultdict, factory))

    def _fill(self, found: dict[Any, Any], content: Iterable[Any]) -> None:
        before = dict(found)
        # Code under keys that the process counts up, as hooks have them, is found by its place.
        places = dict(enumerate(before.values()))
        items = []
        for i, (key_tree, item) in enumerate(content):
            key = self.value(key_tree, None)
            is_code = isinstance(item, dict) and not _CODE_TAGS.isdisjoint(item)
            made = places.get(i) if is_code and key not in before else before.get(key)
            items.append((key, self.value(item, made)))
        found.clear()
        found.update(items)

    def _numbered(self, number: int, found: Any) -> Any:
        self._met[number] = found
        return found

    def _mine(self, made: Any, kind: Any, new: Callable[[], Any] | None = None) -> Any:
        """The object that is there already, since hooks and closures may hold it, or a new one."""
        if type(made) is kind and id(made) not in self._taken:
            self._taken.add(id(made))
            return made
        return (new or kind)()

    def _function(self, number: int, tree: Mapping[str, Any], made: Any) -> Any:
        name = _name(made) if isinstance(made, types.FunctionType) else ""
        made = self._numbered(number, _same_code(made, types.FunctionType, tree["function"], name))
        # What it has closed over is put right where it can be changed in place.
        contents = [cell.cell_contents for cell in made.__closure__ or ()]
        for item, there in _beside(tree["cells"], contents):
            self.value(item, there)
        return made

    def _instance(self, number: int, tree: Mapping[str, Any], made: Any) -> Any:
        name = tree["object"]
        if made is None or _name(type(made)) != name or id(made) in self._taken:
            made = object.__new__(self._class(name))
        elif isinstance(made, torch.optim.Optimizer):
            self._modules |= {cls.__module__ for cls in type(made).__mro__}
        self._taken.add(id(made))
        self._numbered(number, made)
        before = dict(vars(made))
        fields = {field: self.value(item, before.get(field)) for field, item in tree["fields"].items()}
        vars(made).clear()
        vars(made).update(fields)
        return made

    def _class(self, name: str) -> type:
        """A class of data from a module that the optimizer is of: loaded already, so no code is run by finding it."""
        module, _, qualified = name.partition(":")
        found: Any = sys.modules.get(module) if module in self._modules else None
        for part in qualified.split("."):
            found = getattr(found, part, None)
        if not (isinstance(found, type) and _name(found) == name and _is_data(found)):
            raise NotPlain(f"an object of the type {name}, which is not where it was")
        return found

    def _tensor(self, tree: Mapping[str, Any], made: Any) -> Tensor:
        dtype = _dtype(tree["tensor"])
        size = torch.empty((), dtype=dtype).element_size()
        if "in known" in tree:
            known = self._known[tree["in known"]]
            assert isinstance(known, Tensor)
            storage, start = known.untyped_storage(), tree["start"]
        else:
            storage = self._storage(tree["in"], torch.device("cpu") if tree["cpu"] else self._device)
            start = tree["start"] - self._starts.get(tree["in"], 0)
        shape, strides = tree["shape"], tree["stride"]
        last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1 if all(shape) else 0
        if min([start, *shape, *strides]) < 0 or (last and start + last * size > storage.nbytes()):
            raise NotPlain("a tensor that reaches beyond its bytes")
        found = torch.empty(0, dtype=dtype, device=storage.device)
        found.set_(storage, start // size, shape, strides)
        if tree["parameter"]:
            if isinstance(made, nn.Parameter) and id(made) not in self._taken and made.shape == found.shape:
                self._taken.add(id(made))
                made.data = found
                return made
            return nn.Parameter(found, requires_grad=tree["grad"])
        return found.requires_grad_(tree["grad"])

    def _storage(self, i: int, device: torch.device) -> torch.UntypedStorage:
        if i not in self._storages:
            # In memory of its own, which begins where the allocator says: a kernel's sums may depend on that.
            written = self._plain.storages[i]
            held = torch.empty(written.numel(), dtype=torch.uint8, device=device)
            self._storages[i] = held.copy_(written).untyped_storage()
        return self._storages[i]

    def _find_starts(self, tree: Any) -> dict[int, int]:
        """Where the kept bytes of every storage began."""
        starts: dict[int, int] = {}
        waiting = [tree]
        while waiting:
            item = waiting.pop()
            if isinstance(item, dict):
                if "tensor" in item and "in" in item:
                    start = item["start"] // 64 * 64
                    starts[item["in"]] = min(starts.get(item["in"], start), start)
                waiting += item.values()
            elif isinstance(item, list):
                waiting += item
        return starts


def _has_graph(tensor: Tensor) -> bool:
    try:
        return tensor.grad_fn is not None
    except RuntimeError:  # a view made without a graph, whose base has changed since: it is data all the same
        return False


def _same_code(made: Any, kind: Any, name: str, found: str) -> Any:
    """`made`, where it is code of this kind and name.

    Raises:
        NotPlain: it is not.
    """
    if isinstance(made, kind) and found == name:
        return made
    raise NotPlain(f"{name}, which is not where it was")


def _beside(content: Sequence[Any], made: Any) -> list[tuple[Any, Any]]:
    """Every item with what the new optimizer has in its place."""
    there = made if isinstance(made, list | tuple) else ()
    return [(item, there[i] if i < len(there) else None) for i, item in enumerate(content)]


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise NotPlain(f"{name}, which is no type of numbers")
    return found


def _is_data(kind: type) -> bool:
    """Whether the fields of its objects are all there is to them: a class in Python, with no way of its own to be
    copied (`random.Random` keeps its state where no field shows it)."""
    if issubclass(kind, torch.optim.Optimizer):
        return True
    in_python = all(cls.__flags__ & (1 << 9) for cls in kind.__mro__[:-1])  # Py_TPFLAGS_HEAPTYPE
    copied = kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__
    slots = any("__slots__" in vars(cls) for cls in kind.__mro__[:-1])
    own_end = hasattr(kind, "__del__")
    return in_python and copied and not slots and not own_end and kind.__getstate__ is object.__getstate__


def _fields(value: Any) -> list[tuple[str, Any]]:
    """Its fields by name; the optimizers within it first, since it may hold their states under other names."""
    if not hasattr(value, "__dict__"):
        raise NotPlain(f"an object of the type {_name(type(value))}, without fields that could be listed")
    fields = dict(vars(value))
    return sorted(fields.items(), key=lambda field: (not _holds_optimizers(field[1]), field[0]))


def _holds_optimizers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_optimizers, value))
    return isinstance(value, torch.optim.Optimizer)
