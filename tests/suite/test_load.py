"""Valid suites are loaded exactly as written, and the optimizer check receives every setting."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from optbench.errors import OptimizerError, SuiteError, UsageError
from optbench.suite import load_suite
from optbench.suite.document import parse_yaml
from optbench.suite.protocol import EarlyStopping, Protocol
from optbench.suite.schema import LogGrid, ModelSettings, TaskSettings

TEXT = """\
name: full-1.0
description: |
  Two lines,
  and a – dash.
stage: tune
seed: 7
seeds: [3, 1]
optimizers:
  sgd: &sgd {target: sgd, lr: 1e-3, nesterov: false, momentum: null}
  heavy: {<<: *sgd, momentum: 0.9, lr: [.1, 1_0, 0x10, 1E+2]}
  'on': {target: "module:Class", betas: [0.9, 0.999], base: {target: adam, lr: 1}}
experiments:
  rotated.v2:
    tasks: {kind: rotated, angles: [0, 45]}
    models: {m: {kind: mlp, hidden: [5, 1e1], activation: tanh}, c: {kind: cnn}}
    protocol:
      max_steps: 1e5
      early_stopping: {on: test, patience: 2}
    optimizers: {sgd: , heavy: {lr: 5}}
    metrics: [forgetting]
  pairs:
    tasks: {kind: class-incremental}
    models: {m: {kind: mlp}}
    protocol: {early_stopping: null}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_every_value_of_the_file_is_loaded(file: Path) -> None:
    suite = load_suite(file)
    assert (suite.name, suite.stage, suite.seed, suite.seeds) == ("full-1.0", "tune", 7, [3, 1])
    assert suite.description == "Two lines,\nand a – dash.\n"
    assert suite.optimizers["sgd"].hyperparameters == {"lr": 0.001, "nesterov": False, "momentum": None}
    heavy = suite.optimizers["heavy"]
    assert heavy.target == "sgd"
    assert heavy.hyperparameters == {"lr": [0.1, 10, 16, 100.0], "nesterov": False, "momentum": 0.9}
    assert suite.optimizers["on"].hyperparameters["base"] == {"target": "adam", "lr": 1}
    rotated, pairs = suite.experiments["rotated.v2"], suite.experiments["pairs"]
    assert rotated.tasks == TaskSettings.of("rotated", angles=[0.0, 45.0])
    assert rotated.models == {
        "m": ModelSettings.of("mlp", hidden=[5, 10], activation="tanh"),
        "c": ModelSettings.of("cnn"),
    }
    assert rotated.protocol == Protocol(max_steps=100_000, early_stopping=EarlyStopping(on="test", patience=2))
    assert rotated.optimizers == {"sgd": {}, "heavy": {"lr": 5}}
    assert pairs.tasks == TaskSettings.of("class-incremental")
    assert pairs.protocol == Protocol(early_stopping=None)
    assert pairs.optimizers is None


def test_a_number_of_seeds_counts_from_zero(file: Path) -> None:
    assert load_suite(file, ["seeds=4"]).seeds == [0, 1, 2, 3]


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "windows.yaml"
    other.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert load_suite(other) == load_suite(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("+1.5e+2", 150.0),
        ("0", 0),
        ("-7", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("~", None),
        ("null", None),
        ("TRUE", True),
        ("'true'", "true"),
        ("'1e-3'", "1e-3"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("e5", "e5"),
        (".", "."),
        ("1__0", "1__0"),
        ("٣", "٣"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("<<", "<<"),
        ("", None),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}\n", "x").value["a"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_text_as_written() -> None:
    assert parse_yaml("{10: a, on: b, null: c, 1e3: d, true: e}", "x").value == {
        "10": "a",
        "on": "b",
        "null": "c",
        "1e3": "d",
        "true": "e",
    }


def test_the_first_merged_mapping_wins_and_direct_keys_override_all() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2, w: 2}\nc: {w: 3, <<: [*a, *b]}\n"
    assert parse_yaml(text, "x").value["c"] == {"x": 1, "y": 1, "z": 2, "w": 3}


def test_an_alias_is_a_copy(file: Path) -> None:
    value = parse_yaml("a: &a {x: [1]}\nb: *a\n", "x").value
    assert value["a"] == value["b"]
    assert value["a"] is not value["b"]
    assert value["a"]["x"] is not value["b"]["x"]


def test_a_logarithmic_grid_is_evenly_spaced_and_keeps_its_ends() -> None:
    assert LogGrid(log=(1e-4, 1.0), points=5).values() == [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    grid = LogGrid(log=(3e-7, 0.123456789012345), points=8).values()
    ratios = [b / a for a, b in itertools.pairwise(grid)]
    assert (grid[0], grid[-1]) == (3e-7, 0.123456789012345)
    assert ratios == pytest.approx([ratios[0]] * 7, rel=1e-2)


class Recorder:
    """A replacement for the registry that records calls and refuses given settings."""

    def __init__(self, refuse: Mapping[str, Any] | None = None, message: str = "") -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refuse = refuse
        self.message = message

    def __call__(self, target: str, hyperparameters: Mapping[str, Any]) -> None:
        self.asked.append((target, dict(hyperparameters)))
        if self.refuse is not None and self.refuse.items() <= hyperparameters.items():
            raise OptimizerError(self.message)


def test_the_check_gets_every_variant_of_the_suite_and_of_its_experiments(file: Path) -> None:
    check = Recorder()
    load_suite(file, check_optimizer=check)
    common = {"nesterov": False, "momentum": 0.9}
    assert check.asked == [
        ("sgd", {"lr": 0.001, "nesterov": False, "momentum": None}),
        *(("sgd", {"lr": lr, **common}) for lr in (0.1, 10, 16, 100.0)),
        ("module:Class", {"betas": [0.9, 0.999], "base": {"target": "adam", "lr": 1}}),
        ("sgd", {"lr": 5, **common}),
    ]


def test_a_refused_setting_is_reported_with_its_place(file: Path) -> None:
    def message(check: Recorder, *overrides: str) -> str:
        with pytest.raises((SuiteError, UsageError)) as caught:
            load_suite(file, overrides, check_optimizer=check)
        return str(caught.value)

    refused = "sgd: 'lr': expected to be below 5, got 5"
    assert message(Recorder({"lr": 5}, refused)) == (
        f"{file}:19:33: experiments.rotated.v2.optimizers.heavy: {refused}"
    )
    # A setting that the experiment does not change is placed at the optimizer of the suite.
    assert message(Recorder({"lr": 5}, "'momentum' and more")).startswith(f"{file}:10:21: experiments.")
    assert message(Recorder({"lr": 0.001}, "the 'target' is odd")).startswith(f"{file}:9:14: optimizers.sgd: the")
    assert message(Recorder({"lr": 0.001}, "no")) == f"{file}:9:3: optimizers.sgd: no"
    # A setting from the command line is placed at the flag, even if the message does not name the key.
    for text in ("'lr' is odd", "odd"):
        expected = f"--set optimizers.sgd.lr=9: optimizers.sgd: {text}"
        assert message(Recorder({"lr": 9}, text), "optimizers.sgd.lr=9") == expected
