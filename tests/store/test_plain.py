"""Optimizers written down as plain data: what comes back is the same object graph, or nothing comes back."""

from __future__ import annotations

import collections
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optbench.data import Dataset
from optbench.engine.plain import NotPlain, Plain, from_plain, to_plain
from tests.conftest import same_bits, small_suite
from tests.engine.test_interim import cut_and_whole


def there_and_back(value: Any) -> Any:
    plain = to_plain(value)
    assert json.loads(json.dumps(plain.tree)) == plain.tree, "the tree is what JSON has"
    found = from_plain(plain)
    assert to_plain(found).equals(plain)
    return found


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers() | st.booleans(), inner)
    ),
)


@given(values)
def test_numbers_texts_and_containers_come_back_as_they_were(value: Any) -> None:
    assert repr(there_and_back(value)) == repr(value)


@given(st.sets(st.text()), st.sets(st.text()))
def test_equal_sets_are_written_alike_whatever_was_in_them_before(items: set[str], before: set[str]) -> None:
    restored = from_plain(to_plain(items), into=before)
    assert restored is before
    assert restored == items
    assert to_plain(restored).equals(to_plain(items))
    assert there_and_back(frozenset(items)) == items


def test_floats_that_are_no_numbers_come_back() -> None:
    nan, *others = there_and_back([math.nan, math.inf, -math.inf, -0.0, 5e-324])
    assert math.isnan(nan)
    assert repr(others) == "[inf, -inf, -0.0, 5e-324]"


@given(st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16]), st.integers(0, 5))
def test_tensors_come_back_with_type_shape_and_strides(dtype: torch.dtype, rows: int) -> None:
    whole = torch.randn(rows, 7, 3, generator=torch.Generator().manual_seed(rows)).to(dtype)
    for tensor in (whole, whole.transpose(0, 2), whole[:, 1::2], whole.sum().to(dtype), whole[:0]):
        found = there_and_back(tensor)
        assert (found.dtype, found.shape, found.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert torch.equal(found, tensor)


def test_what_shares_memory_shares_it_again_and_what_is_one_object_is_one() -> None:
    base = torch.arange(100.0)
    part = base[50:60]
    items = {"part": part, "same": part, "whole": base, "list": [part]}
    found = there_and_back({"a": items, "b": items})
    assert found["a"] is found["b"]
    assert found["a"]["part"] is found["a"]["same"] is found["a"]["list"][0]
    found["a"]["whole"][55] = -1
    assert found["a"]["part"][5] == -1


def test_of_a_large_storage_only_what_is_seen_is_kept() -> None:
    view = torch.arange(1_000_000.0)[500_003:500_010]
    plain = to_plain(view)
    assert sum(storage.numel() for storage in plain.storages) <= 64 + 7 * 4
    assert torch.equal(from_plain(plain), view)


def test_a_graph_with_cycles_comes_back() -> None:
    items: list[Any] = [1]
    items += [items, {"again": items}]
    found = there_and_back(items)
    assert found[1] is found
    assert found[2]["again"] is found


def test_other_containers_come_back() -> None:
    value = {
        "deque": collections.deque([1, 2], maxlen=3),
        "default": collections.defaultdict(list, {"a": [1]}),
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
        "sets": ({1}, frozenset({2})),
        "numpy": (np.float64(0.1), np.full((2, 3), 7, np.int16)),
        "torch": (torch.float16, torch.device("cpu"), torch.Size([2])),
        "slice": slice(1, None, 2),
    }
    found = there_and_back(value)
    assert found["deque"].maxlen == 3
    found["default"]["new"].append(1)
    assert repr({**found, "default": 0}) == repr({**value, "default": 0})


def test_a_generator_draws_what_it_would_have_drawn() -> None:
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    found = there_and_back(generator)
    assert torch.equal(torch.rand(5, generator=found), torch.rand(5, generator=generator))


def test_nothing_is_imported_or_called_by_reading() -> None:
    """A tree that somebody made up names classes and functions; none of them is found."""
    for tree in (
        {"object": "subprocess:Popen", "fields": {}},
        {"object": "optbench.execution.session:Options", "fields": {}},
        {"function": "os:system", "cells": []},
        {"code": "os:system"},
        {"method": "kill", "of": None},
        {"reduce": ["os:system", "ls"]},
        {"dtype": "torch.load"},
        {"dtype": "torch.nn"},
        {**TENSOR, "tensor": "torch.load"},
        {**TENSOR, "shape": [10], "stride": [1]},
        {**TENSOR, "start": -4},
        {**TENSOR, "stride": [1 << 40], "shape": [2]},
        {**TENSOR, "in": 3},
        {"known": 5},
        {"again": 0},
        {"float": "one"},
        {"scalar": "O", "bytes": "00"},
        {},
        {"list": 5},
    ):
        with pytest.raises(NotPlain):
            from_plain(Plain(tree, (torch.zeros(4, dtype=torch.uint8),)))


TENSOR = {
    "tensor": "torch.float32",
    "shape": [1],
    "stride": [1],
    "start": 0,
    "grad": False,
    "parameter": False,
    "cpu": True,
    "in": 0,
}


def test_a_class_of_another_module_is_not_reached_through_the_optimizers_own() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    plain = to_plain(torch.optim.SGD([parameter], lr=0.1), [parameter])
    for name in (
        "torch.optim.sgd:torch.hub.tempfile._TemporaryFileCloser",
        "torch.optim.sgd:SGD.__init__",
        "os:system",
    ):
        fields = {**plain.tree["fields"], "evil": {"object": name, "fields": {"name": "x", "delete": True}}}
        with pytest.raises(NotPlain):
            from_plain(Plain({**plain.tree, "fields": fields}, ()), [parameter], torch.optim.SGD([parameter], lr=0.1))


def test_what_shares_memory_with_numpy_is_not_written_down() -> None:
    array = np.zeros(4)
    for value in (array[:2], torch.zeros(3).numpy(), torch.zeros(2, dtype=torch.complex64).conj()):
        with pytest.raises(NotPlain):
            to_plain(value)


def test_what_is_at_work_is_not_changed_by_restoring_it() -> None:
    """An optimizer whose constructor hands out one object to all: the proof that it can be restored is not felt."""

    class Shared(torch.optim.SGD):
        cache: dict[str, Any] = {}  # noqa: RUF012

        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, lr=0.1)
            self.mine = self.cache

    parameter, other = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    alive = Shared([parameter])
    alive.mine["p"] = parameter
    twin = from_plain(to_plain(alive, [parameter]), [other], Shared([other]))
    assert twin.mine["p"] is other
    assert alive.mine["p"] is parameter


COMMON = """
import collections, dataclasses, random
import numpy as np
import torch

@dataclasses.dataclass
class Record:
    count: int
    mean: torch.Tensor

class Tracker:
    def __init__(self):
        self.seen = []

def count_up():
    count = 0
    def up():
        nonlocal count
        count += 1
        return count
    return up

def note(optimizer, args, kwargs):
    optimizer.seen.append(1)

class Base(torch.optim.Optimizer):
    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})
        self.begin()
    def begin(self): ...
    def loaded(self): ...
    def scale(self, p): return 1.0
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"] * self.scale(p))
"""

RESTORED = {
    "a helper made by the constructor": """
    def begin(self): self.tracker = Tracker()
    def scale(self, p):
        self.tracker.seen.append(float(p.grad.norm()))
        return 1 / (1 + sum(self.tracker.seen[-3:]))""",
    "helpers made on the way": """
    def begin(self): self.records = {}
    def scale(self, p):
        record = self.records.setdefault(p, Record(0, torch.zeros_like(p)))
        record.count += 1
        record.mean.lerp_(p.grad, 1 / record.count)
        return 1 / (1 + float(record.mean.norm()))""",
    "one tensor under two names, and a view of it": """
    def begin(self): self.last = None
    def scale(self, p):
        if p not in self.state:
            self.state[p]["m"] = torch.zeros(2, *p.shape).transpose(0, -1)
            self.state[p]["view"] = self.state[p]["m"][..., 1]
        self.last = self.state[p]["m"]
        self.last.add_(0.1)
        return 1 / (1 + float(self.state[p]["view"].mean()))""",
    "a generator and a deque": """
    def begin(self): self.draws, self.window = torch.Generator().manual_seed(1), collections.deque(maxlen=4)
    def scale(self, p):
        self.window.append(float(torch.rand((), generator=self.draws)))
        return sum(self.window) / 4""",
    "a method and a function of its own": """
    def begin(self): self.rule, self.other, self.factor = self.shrink, abs, 1.0
    def shrink(self): self.factor *= 0.99; return self.factor
    def scale(self, p): return self.other(self.rule())""",
    "an average that takes the place of the weights while they are measured": """
    def begin(self): self.kept = None
    def scale(self, p):
        average = self.state[p].setdefault("average", p.clone())
        average.mul_(0.9).add_(p, alpha=0.1)
        return 1.0
    @torch.no_grad()
    def eval(self):
        self.kept = [p.clone() for g in self.param_groups for p in g["params"]]
        for p in self.param_groups[0]["params"]: p.copy_(self.state[p].get("average", p))
    @torch.no_grad()
    def train(self):
        if self.kept is None: return
        for p, kept in zip(self.param_groups[0]["params"], self.kept): p.copy_(kept)
        self.kept = None""",
    "hooks, whose keys the process counts up": """
    def begin(self):
        self.seen = []
        self.register_step_pre_hook(note)
        self.register_load_state_dict_post_hook(Base.loaded)
    def loaded(self): ...
    def scale(self, p): return 1 / (1 + len(self.seen))""",
    "a view of a parameter, which PyTorch no longer tells the graph of": """
    def begin(self): self.views = {}
    def scale(self, p):
        view = self.views.setdefault(p, p.view(-1))
        return 1 / (1 + float(view.square().mean()))""",
    "what a closure holds and changes in place": """
    def begin(self):
        kept = []
        def rule():
            kept.append(1)
            return 1 / len(kept)
        self.rule = rule
    def scale(self, p): return self.rule()""",
}
NOT_RESTORED = {
    "random.Random": """
    def begin(self): self.random = random.Random(0)
    def scale(self, p): return self.random.random()""",
    "a NumPy generator": """
    def begin(self): self.random = np.random.default_rng(0)
    def scale(self, p): return self.random.random()""",
    "an iterator": """
    def begin(self): self.rates = iter([0.5] * 1000)
    def scale(self, p): return next(self.rates)""",
    "a count in a closure": """
    def begin(self): self.up = count_up()
    def scale(self, p): return 1 / self.up()""",
    "a function that was not there at first": """
    def begin(self): self.rule = None
    def scale(self, p):
        self.rule = (lambda: 0.5)
        return self.rule()""",
    "a constructor that works once": """
    made = []
    def begin(self):
        if self.made:
            raise RuntimeError("there is one already")
        self.made.append(1)""",
    "a list of lists without end": """
    def begin(self): self.chain = []
    def scale(self, p):
        for _ in range(2000):
            self.chain = [self.chain]
        return 1.0""",
    "a class of somewhere else": """
    def begin(self): self.found = None
    def scale(self, p):
        import fractions
        self.found = fractions.Fraction(1, 2)
        return float(self.found)""",
}


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugins") / "theirs.py"
    bodies = {**RESTORED, **NOT_RESTORED}
    classes = [f"\nclass C{i}(Base):{body}\n" for i, body in enumerate(bodies.values())]
    path.write_text(COMMON + "".join(classes))
    return path


@pytest.mark.parametrize("name", RESTORED)
def test_a_users_optimizer_goes_on_as_it_was(name: str, plugins: Path, mnist: Dataset) -> None:
    for _, whole, again in cut_and_whole(small_suite_of(name, plugins), mnist):
        assert all(map(same_bits, whole, again))


@pytest.mark.parametrize("name", NOT_RESTORED)
def test_what_cannot_be_restored_is_not_kept(name: str, plugins: Path, mnist: Dataset) -> None:
    with pytest.raises(NotPlain):
        cut_and_whole(small_suite_of(name, plugins), mnist)


def small_suite_of(name: str, plugins: Path) -> Any:
    i = [*RESTORED, *NOT_RESTORED].index(name)
    small = {"train_examples": 150, "test_examples": 100, "validation_examples": 50}
    return small_suite({"it": {"target": f"{plugins}:C{i}"}}, seeds=1, max_epochs=1, **small)
