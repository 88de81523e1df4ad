"""Objects that cannot be imported by name: they are sent by value, and their source and captured values are found."""

from __future__ import annotations

import collections
import functools
import pickle
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest

from optbench.targets import Objects, TargetError, load, read_source, source_hash, using

SCALE = 3


def importable(value: float) -> float:
    return SCALE * value


def scaled(scale: float) -> Callable[[float], float]:
    def scale_it(value: float) -> float:
        return scale * value

    return scale_it


def in_main(text: str) -> dict[str, Any]:
    """Return the definitions of a script or notebook cell."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(text, names)
    return names


def test_importable_objects_are_referred_to_by_name() -> None:
    objects = Objects()
    assert objects.target(importable) == f"{__name__}:importable"
    assert objects.target(collections.OrderedDict) == "collections:OrderedDict"
    assert objects.sources == {}


def test_objects_are_named_in_order_and_keep_their_names() -> None:
    objects, first, second = Objects(), scaled(2.0), scaled(3.0)
    partial = functools.partial(importable, 1.0)
    names = [objects.target(one) for one in (first, second, first, partial, lambda: 0)]
    assert names == ["python:scale_it", "python:scale_it-2", "python:scale_it", "python:importable", "python:lambda"]
    with using(objects.sources):
        assert load("python:scale_it-2") is second
        assert read_source("python:scale_it") is objects.sources["python:scale_it"]


def test_another_process_gets_a_copy_that_is_unpickled_only_when_loaded() -> None:
    objects = Objects()
    text = (
        "import torch\nclasses = 2\ndef helper(x): return x + torch.tensor(classes)\ndef mine(x): return int(helper(x))"
    )
    target = objects.target(in_main(text)["mine"])
    sent = pickle.dumps(objects.sources)
    code = "import pickle, sys; from optbench.targets import load, use; use(pickle.loads(sys.stdin.buffer.read())); "
    code += (
        f"assert 'cloudpickle' not in sys.modules; print(load({target!r})(40), load({target!r}) is load({target!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=False)
    assert (done.stdout.decode().split(), done.stderr) == (["42", "True"], b"")


def test_an_object_that_cannot_be_pickled_is_refused_immediately() -> None:
    lock = threading.Lock()
    with pytest.raises(TargetError, match=r"python:locked: cannot be sent to worker processes: TypeError: .*lock"):
        Objects().target(types.FunctionType((lambda: lock).__code__, {}, "locked", None, (types.CellType(lock),)))


def test_a_missing_object_is_named_in_the_error() -> None:
    for ask in (load, read_source):
        with pytest.raises(TargetError, match="python:mine: made from a Python object; resume the run from Python"):
            ask("python:mine")


def hash_of(value: object) -> str:
    objects = Objects()
    target = objects.target(value)
    with using(objects.sources):
        found = source_hash([target])
    assert found is not None
    return found


def test_the_hash_covers_source_and_captured_values() -> None:
    assert hash_of(scaled(2.0)) == hash_of(scaled(2.0))
    assert len({hash_of(scaled(2.0)), hash_of(scaled(3.0)), hash_of(functools.partial(scaled(2.0), 1.0))}) == 3
    objects = Objects()
    objects.target(scaled(2.5))
    text = objects.sources["python:scale_it"].files["scale_it.py"].decode()
    assert text == "def scale_it(value: float) -> float:\n    return scale * value\n\n# scale = 2.5"


def test_the_hash_of_an_object_without_source_covers_its_pickle() -> None:
    one, other = (in_main(f"def mine(x): return x + {n}")["mine"] for n in (1, 2))
    assert hash_of(one) == hash_of(one)
    assert hash_of(one) != hash_of(other)
