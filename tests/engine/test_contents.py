"""Digests of the state of objects, and of the state that user code keeps outside instances."""

from __future__ import annotations

import argparse
import collections
import logging
import random
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from optbench.engine.contents import digest
from optbench.engine.outside import OutsideState


def _stepping() -> Callable[[], None]:
    def step() -> None: ...

    step.calls = 0  # type: ignore[attr-defined]
    return step


def _remembering() -> Callable[..., None]:
    def remember(past: list[int] = []) -> None: ...  # noqa: B006

    return remember


HOLDERS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "namespace": (lambda: argparse.Namespace(k=0), lambda it: setattr(it, "k", 1)),
    "simple namespace": (lambda: types.SimpleNamespace(k=0), lambda it: setattr(it, "k", 1)),
    "user list": (lambda: collections.UserList([1]), lambda it: it.append(2)),
    "counter": (lambda: collections.Counter("a"), lambda it: it.update("a")),
    "random": (lambda: random.Random(0), lambda it: it.random()),
    "numpy generator": (lambda: np.random.default_rng(0), lambda it: it.random()),
    "torch generator": (lambda: torch.Generator().manual_seed(0), lambda it: torch.rand(1, generator=it)),
    "attribute of a function": (_stepping, lambda it: setattr(it, "calls", 1)),
    "default of a function": (_remembering, lambda it: it.__defaults__[0].append(1)),
}


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held


@pytest.mark.parametrize("name", HOLDERS)
def test_a_change_of_state_changes_the_digest(name: str) -> None:
    make, change = HOLDERS[name]
    one, other = Holder(make()), Holder(make())
    assert digest(one) == digest(other)
    change(one.held)
    assert digest(one) != digest(other)


def test_loggers_are_not_part_of_the_digest() -> None:
    holder = Holder(logging.getLogger("optbench tests"))
    before = digest(holder)
    holder.held.parent.handlers.append(logging.NullHandler())
    try:
        assert digest(holder) == before
    finally:
        holder.held.parent.handlers.pop()


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("import numpy as np\nSEEN = np.zeros(2)", "SEEN += 1"),
        (
            "class Memory:\n    count = None\n    def __init__(self): self.steps = 0\nMEMORY = Memory()",
            "MEMORY.steps = 1",
        ),
        ("STEPS = 0", "STEPS = 1"),
    ],
)
def test_state_kept_in_a_module_is_noticed(text: str, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("users_module")
    monkeypatch.setitem(sys.modules, "users_module", module)
    exec(f"{text}\nclass Mine: pass", vars(module))
    before = OutsideState([vars(module)["Mine"]])
    assert before.changed() is None
    exec(change, vars(module))
    assert (before.changed() or "").startswith("users_module.")
