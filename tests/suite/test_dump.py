"""Writing a suite: it loads back equal in any version of YAML, and its hash depends on its meaning."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from optbench.suite import Suite, dump_suite, load_suite, suite_hash
from optbench.suite.document import parse_yaml

SMALL: dict[str, Any] = {
    "name": "small",
    "seeds": 2,
    "optimizers": {"sgd": {"target": "sgd", "lr": 1e-5}},
    "experiments": {"e": {"tasks": {"kind": "permuted"}, "models": {"m": {"kind": "mlp"}}}},
}

names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.+-]{0,12}\Z") | st.sampled_from(["on", "null", "1e-3", "1.0", "NO"])
READ_AS_OTHERS = ["1e-3", "on", "yes", "null", "~", "", "<<", "=", "1:30", "0o7", "010", "nan", ".inf", "1_0"]
HARD_TO_QUOTE = [
    " x",
    "x ",
    "\n",
    "\n x",
    "a\n\nb\n",
    "a\r\nb",
    "\x85",
    "\u2028",
    "\ufeff",
    "a #b",
    "- a",
    "a: b",
    "'",
    '"',
]
words = st.text(max_size=12) | st.sampled_from(
    [*READ_AS_OTHERS, *HARD_TO_QUOTE, "#", "%", "2024-01-01", "\x00", "\U0001f600"]
)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1)
scalars = st.one_of(st.none(), st.booleans(), numbers, words)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6
)
hyperparameters = st.dictionaries(
    st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,8}\Z").filter(lambda key: key not in ("target", "model_config")),
    scalars | st.dictionaries(words, values, max_size=3).filter(lambda value: "log" not in value),
    max_size=3,
)
tasks = st.one_of(
    st.fixed_dictionaries({"kind": st.just("permuted"), "count": st.integers(1, 9)}),
    st.fixed_dictionaries({"kind": st.just("rotated"), "angles": st.lists(st.floats(-360, 360), min_size=1)}),
)
models = st.dictionaries(
    names,
    st.fixed_dictionaries({"kind": st.just("mlp"), "hidden": st.lists(st.integers(1, 999), max_size=3)}),
    min_size=1,
    max_size=2,
)
protocols = st.fixed_dictionaries(
    {"max_epochs": st.floats(1e-9, 1e9), "early_stopping": st.sampled_from([None, {"on": "test", "patience": 2}])}
)


@st.composite
def suites(draw: st.DrawFn) -> Suite:
    optimizers = draw(st.dictionaries(names, hyperparameters, min_size=1, max_size=3))
    chosen = draw(
        st.none() | st.dictionaries(st.sampled_from(sorted(optimizers)), hyperparameters, min_size=1, max_size=2)
    )
    experiment = {
        "tasks": draw(tasks),
        "models": draw(models),
        "protocol": draw(protocols),
        "optimizers": chosen,
    }
    return Suite.model_validate(
        {
            "name": draw(names),
            "description": draw(words | st.text(max_size=200)),
            "seed": draw(st.integers(0, 2**63 - 1)),
            "seeds": draw(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=40, unique=True)),
            "optimizers": {name: {"target": "t", **settings} for name, settings in optimizers.items()},
            "experiments": {draw(names): experiment},
        }
    )


def reload(suite: Suite) -> Suite:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "suite.yaml"
        path.write_bytes(dump_suite(suite).encode())
        return load_suite(path)


def typed(value: Any) -> Any:
    """Return the value with its types, to distinguish 1, 1.0 and True, and 0.0 and -0.0."""
    if isinstance(value, dict):
        return [(key, typed(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value), repr(value)


@settings(max_examples=60, deadline=None)
@given(suites())
def test_a_written_suite_loads_back_equal(suite: Suite) -> None:
    again = reload(suite)
    assert again == suite
    assert typed(again.model_dump()) == typed(suite.model_dump())
    assert dump_suite(again) == dump_suite(suite)
    assert suite_hash(again) == suite_hash(suite)


@settings(max_examples=60, deadline=None)
@given(suites())
def test_a_yaml_1_1_reader_reads_the_same_values(suite: Suite) -> None:
    text = dump_suite(suite)
    assert typed(yaml.safe_load(text)) == typed(parse_yaml(text, "x").value) == typed(suite.model_dump())


def test_every_default_is_written() -> None:
    written = yaml.safe_load(dump_suite(Suite.model_validate(SMALL)))
    assert written["seeds"] == [0, 1]
    assert written["stage"] == "eval"
    experiment = written["experiments"]["e"]
    assert experiment["tasks"] == {
        "kind": "permuted",
        "count": 3,
        "first": "permuted",
        "permutations": "per-seed",
        "examples_per_task": None,
    }
    assert experiment["protocol"]["early_stopping"] == {"on": "validation", "patience": 3}
    assert experiment["optimizers"] is None


def changed(**changes: Any) -> Suite:
    return Suite.model_validate({**SMALL, **changes})


def scheduled(**schedule: Any) -> Suite:
    experiment = SMALL["experiments"]["e"]
    return changed(experiments={"e": {**experiment, "protocol": {"schedule": schedule}}})


def test_a_schedule_is_written_with_the_keys_of_its_kind_and_loads_back() -> None:
    for kind, keys in {"constant": [], "linear": ["floor"], "wsd": ["floor", "decay"]}.items():
        suite = scheduled(kind=kind, warmup=0.05)
        written = yaml.safe_load(dump_suite(suite))
        assert list(written["experiments"]["e"]["protocol"]["schedule"]) == ["kind", "warmup", *keys, "span"]
        assert Suite.model_validate(written) == suite
    explicit = {"kind": "cosine", "warmup": 0.0, "floor": 0.0, "span": "task"}
    assert suite_hash(scheduled(kind="cosine")) == suite_hash(scheduled(**explicit))


def test_the_hash_depends_only_on_the_meaning_of_a_suite() -> None:
    original = suite_hash(Suite.model_validate(SMALL))
    assert len(original) == 16
    assert int(original, 16) >= 0
    same = {
        "description": changed(description="words"),
        "order": Suite.model_validate(dict(reversed(SMALL.items()))),
        "spelt-out default": changed(stage="eval", seeds=[0, 1]),
    }
    assert {name: suite_hash(suite) for name, suite in same.items()} == dict.fromkeys(same, original)
    others = [
        changed(name="other"),
        changed(stage="tune"),
        changed(seeds=[1, 0]),
        changed(seed=1),
        changed(optimizers={"sgd": {"target": "sgd", "lr": 1.0000000000000002e-5}}),
        changed(optimizers={"sgd": {"target": "adam", "lr": 1e-5}}),
        *(scheduled(kind=kind) for kind in ("constant", "linear", "cosine", "wsd")),
        scheduled(kind="cosine", span="all"),
    ]
    assert len({original, *(suite_hash(suite) for suite in others)}) == len(others) + 1


def test_the_hash_is_stable_between_releases() -> None:
    # Stored runs have this hash; if a release changed it, they would look like runs of another suite.
    assert suite_hash(Suite.model_validate(SMALL)) == "72720d48c60de6f7"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("nan")]}, {1: 2}, (1, 2), object()])
def test_values_that_yaml_cannot_represent_are_refused_in_code(value: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        changed(optimizers={"sgd": {"target": "sgd", "x": value}})
    experiment = {**SMALL["experiments"]["e"], "optimizers": {"sgd": {"x": value}}}
    with pytest.raises(ValueError, match="expected"):
        changed(experiments={"e": experiment})
