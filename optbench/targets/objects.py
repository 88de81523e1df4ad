"""Objects that another process cannot import by name: classes in a notebook or in `__main__`, and closures.

These objects are pickled once, by cloudpickle, and sent to worker processes by value. The pickles are never stored in
a run directory.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from optbench.targets.executing import importing, on_its_own, said
from optbench.targets.inspection import is_found, is_importable, source_texts
from optbench.targets.source import DIGITS, IN_MEMORY, Source, TargetError

_LOADED: dict[str, Any] = {}


@dataclass(frozen=True, eq=False)
class InMemory(Source):
    """An object in the state in which it was passed to a run; other processes load a copy.

    Attributes:
        pickled: the object as pickled by cloudpickle.
        value: the object itself; None in other processes.
    """

    pickled: bytes = b""
    value: Any = None

    @property
    def stem(self) -> str:
        return self.main.removesuffix(".py").partition("-")[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "value": None}

    def load(self, target: str) -> Any:
        """Return the object; raise TargetError if it cannot be unpickled here."""
        if self.value is not None:
            return self.value
        key = hashlib.sha256(self.pickled).hexdigest()
        if key not in _LOADED:
            import cloudpickle

            with importing(target, target), on_its_own():
                _LOADED[key] = cloudpickle.loads(self.pickled)
        return _LOADED[key]


class Objects:
    """The targets of the objects passed to a run. Objects with equal names are numbered in the order given."""

    def __init__(self) -> None:
        self.sources: dict[str, InMemory] = {}
        """The objects that other processes cannot import, by target."""

    def target(self, value: Any) -> str:
        """Return a target for an object: `module:name` if other processes can import it, else `python:name`.

        Raises:
            TargetError: the object cannot be pickled.
        """
        if is_importable(value):
            return f"{value.__module__}:{value.__name__}"
        if known := [target for target, source in self.sources.items() if source.value is value]:
            return known[0]
        inner = value.func if isinstance(value, functools.partial) else value
        stem = re.sub(r"\W+", "", getattr(inner, "__name__", type(inner).__name__)) or "object"
        number = 1 + sum(source.stem == stem for source in self.sources.values())
        name = stem if number == 1 else f"{stem}-{number}"
        target = f"{IN_MEMORY}:{name}"
        self.sources[target] = _read(value, name, target)
        return target


def is_object(where: str) -> bool:
    """Return whether a target refers to an object in memory."""
    return where.startswith(f"{IN_MEMORY}:")


def lost(target: str) -> TargetError:
    """Return the error for an object that was not passed to this process."""
    return TargetError(f"{target}: made from a Python object; resume the run from Python with the same object")


def _read(value: Any, name: str, target: str) -> InMemory:
    import cloudpickle
    from cloudpickle.cloudpickle import subimport

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        """A pickler that pickles modules by name, even those of special types, such as `torch.classes`."""

        def reducer_override(self, one: Any) -> Any:
            return (subimport, (one.__name__,)) if isinstance(one, ModuleType) else super().reducer_override(one)

    module = sys.modules.get(getattr(value, "__module__", None) or "")
    try:
        if module is not None and not is_found(module):
            cloudpickle.register_pickle_by_value(module)  # otherwise only a reference to the module would be pickled
        buffer = io.BytesIO()
        Pickler(buffer).dump(value)
    except Exception as error:
        raise TargetError(f"{target}: cannot be sent to worker processes: {said(error)}") from error
    texts = list(dict.fromkeys(source_texts(value)))
    if None in texts:  # the source is incomplete, so the object is identified by its pickle
        texts.append(f"# pickled: {hashlib.sha256(buffer.getvalue()).hexdigest()[:DIGITS]}")
    content = "\n\n".join(filter(None, texts)).encode(errors="surrogatepass")
    return InMemory(Path("<python>"), f"{name}.py", {f"{name}.py": content}, pickled=buffer.getvalue(), value=value)
