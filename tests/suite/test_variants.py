"""Sweeps: swept values, their order and their names."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.errors import OptimizerError
from optbench.kinds import value_name
from optbench.suite import variants
from optbench.suite.variants import MAX_VARIANTS


def test_without_a_sweep_there_is_one_default_variant() -> None:
    settings = {"lr": 0.1, "betas": [0.9, 0.99], "base": {"target": "adam", "betas": [0.9, 0.99]}, "nesterov": True}
    (only,) = variants(settings)
    assert (only.name, only.hyperparameters) == ("default", settings)
    assert [only.name for only in variants({})] == ["default"]


def test_the_optimizer_inside_a_wrapper_can_be_swept() -> None:
    base = {"target": "sam", "base": {"target": "sgd", "lr": [0.1, 0.2], "momentum": 0.9}, "rho": 0.5}
    found = variants({"rho": [1, 2], "base": base})
    assert [variant.name for variant in found] == [
        f"rho={rho},base.base.lr={lr}" for rho in (1, 2) for lr in (0.1, 0.2)
    ]
    assert found[1].hyperparameters == {
        "rho": 1,
        "base": {"target": "sam", "base": {"target": "sgd", "lr": 0.2, "momentum": 0.9}, "rho": 0.5},
    }
    with pytest.raises(OptimizerError, match=r"'lr' is an empty list"):
        variants({"base": {"target": "sgd", "lr": []}})


def test_combinations_are_ordered_with_the_last_key_fastest() -> None:
    found = variants({"lr": [0.1, 0.01], "eps": 1e-8, "momentum": {"log": [0.5, 0.9], "points": 2}})
    assert [variant.name for variant in found] == [
        "lr=0.1,momentum=0.5",
        "lr=0.1,momentum=0.9",
        "lr=0.01,momentum=0.5",
        "lr=0.01,momentum=0.9",
    ]
    assert found[2].hyperparameters == {"lr": 0.01, "eps": 1e-8, "momentum": 0.5}
    assert list(found[2].hyperparameters) == ["lr", "eps", "momentum"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"lr": [0.1]}, ["lr=0.1"]),
        ({"betas": [[0.9, 0.99], [0.8, 0.9]]}, ["betas=[0.9,0.99]", "betas=[0.8,0.9]"]),
        ({"nesterov": [True, False]}, ["nesterov=true", "nesterov=false"]),
        ({"graft": ["adam", None, "a,b", "true"]}, ["graft=adam", "graft=null", 'graft="a,b"', 'graft="true"']),
        ({"n": [1, "1"]}, ["n=1", 'n="1"']),
        ({"base": [{"target": "a"}]}, ['base={"target":"a"}']),
        ({"lr": {"log": [1e-4, 1], "points": 5}}, ["lr=0.0001", "lr=0.001", "lr=0.01", "lr=0.1", "lr=1"]),
    ],
)
def test_variants_are_named_by_their_values(settings: dict[str, Any], names: list[str]) -> None:
    assert [variant.name for variant in variants(settings)] == names


@pytest.mark.parametrize(
    ("value", "name"), [(0.001, "0.001"), (1e-5, "1e-05"), (100000.0, "100000"), (1e6, "1e+06"), (1 / 3, f"{1 / 3!r}")]
)
def test_names_of_floats_are_short(value: float, name: str) -> None:
    assert value_name(value) == name


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_names_of_floats_are_exact(value: float) -> None:
    assert float(value_name(value)) == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": []}, "'lr' is an empty list"),
        ({"betas": []}, "'betas' is an empty list"),
        ({"lr": [0.1, 0.2, 0.1]}, "'lr' lists the value 0.1 twice"),
        ({"lr": [1, 1.0]}, "'lr' lists the value 1 twice"),
        ({"betas": [[1, 2], [1, 2]]}, "'betas' lists the value [1,2] twice"),
        ({"betas": [0.9, [0.9]]}, "'betas' mixes numbers and lists"),
        ({"lr": {"log": [0.1, 0.1], "points": 2}}, "'lr' lists the value 0.1 twice"),
        ({"lr": {"log": [0.1, 1]}}, "'lr': expected a grid such as {log: [1.0e-4, 0.1], points: 4}"),
        ({"lr": {"log": [-1, 1], "points": 2}}, "'lr': expected a grid"),
        ({"lr": {"log": [1, 2], "points": 1}}, "'lr': expected a grid"),
        ({"lr": {"log": 5, "points": 3}}, "'lr': expected a grid"),
        ({"a": list(range(101)), "b": list(range(100))}, "'a': expected at most 10000 variants, got 10100"),
    ],
)
def test_invalid_sweeps_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptimizerError) as caught:
        variants(settings)
    assert str(caught.value).startswith(message)


scalars = st.one_of(st.booleans(), st.integers(-9, 9), st.floats(-9, 9), st.text(max_size=3), st.none())
sweeps = st.lists(scalars, min_size=1, max_size=4, unique_by=value_name)


@given(st.dictionaries(st.sampled_from("abcd"), st.one_of(scalars, sweeps), max_size=4))
def test_names_of_all_combinations_differ(settings: dict[str, Any]) -> None:
    found = variants(settings)
    count = 1
    for value in settings.values():
        count *= len(value) if isinstance(value, list) else 1
    assert len(found) == len({variant.name for variant in found}) == count <= MAX_VARIANTS
    for variant in found:
        for key, value in settings.items():
            chosen = variant.hyperparameters[key]
            assert chosen in value if isinstance(value, list) else chosen == value


def test_listed_settings_are_separate_variants() -> None:
    listed = variants({"lr": 0.1, "variants": [{"lr": 0.3}, {"lr": 0.5, "momentum": 0.9}], "nesterov": False})
    assert [(v.name, v.hyperparameters) for v in listed] == [
        ("lr=0.3", {"lr": 0.3, "nesterov": False}),
        ("lr=0.5,momentum=0.9", {"lr": 0.5, "nesterov": False, "momentum": 0.9}),
    ]


def test_listed_settings_combine_with_sweeps_and_reach_into_wrappers() -> None:
    base = {"target": "sgd", "lr": [0.1, 0.2], "momentum": 0.9}
    listed = variants({"rho": [1, 2], "base": base, "variants": [{"base": {"lr": 5}}, {"base": {"lr": 6}, "rho": 3}]})
    assert [v.name for v in listed] == ["base.lr=5,rho=1", "base.lr=5,rho=2", "base.lr=6,rho=3"]
    assert [v.hyperparameters["rho"] for v in listed] == [1, 2, 3]
    assert [v.hyperparameters["base"]["lr"] for v in listed] == [5, 5, 6], "a listed value overrides a sweep"
    assert all(v.hyperparameters["base"].items() >= {("target", "sgd"), ("momentum", 0.9)} for v in listed)
    assert base["lr"] == [0.1, 0.2], "the given settings are not modified"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "'variants': expected a list of settings"),
        ({"lr": 0.1}, "'variants': expected a list of settings"),
        ([0.1], "'variants': expected a list of settings"),
        ([{}], "'variants': expected a list of settings"),
        ([{"lr": 0.1}, {"lr": 0.1}], "'variants' lists the setting .* twice"),
    ],
)
def test_an_invalid_list_of_settings_is_refused(value: object, message: str) -> None:
    with pytest.raises(OptimizerError, match=message):
        variants({"lr": 0.1, "variants": value})
