"""`--set key.path=value`: the changed values, and errors that quote the option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optbench.errors import SuiteError, UsageError
from optbench.suite import Suite, load_suite
from optbench.suite.protocol import EarlyStopping

TEXT = """\
name: s
seeds: 3
optimizers:
  sgd: {target: sgd, lr: 0.1}
  adam: {target: adam}
  adam.v2: {target: adam, betas: [0.9, 0.99]}
experiments:
  one:
    tasks: &tasks {kind: permuted}
    models: {small: {kind: mlp, hidden: [10, 20]}}
    optimizers: [sgd, adam]
  two.b:
    tasks: *tasks
    models: {small: {kind: mlp}}
    protocol: {early_stopping: null}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(TEXT)
    return path


def plain(suite: Suite) -> dict[str, Any]:
    return suite.model_dump()


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seeds=[5, 6]", ["seeds"], [5, 6]),
        ("stage=tune", ["stage"], "tune"),
        ("description='a=b'", ["description"], "a=b"),
        (" seed =4", ["seed"], 4),
        ("optimizers.sgd.lr=1e-2", ["optimizers", "sgd", "lr"], 0.01),
        ("optimizers.sgd.lr={log: [1e-3, 1], points: 4}", ["optimizers", "sgd", "lr"], {"log": [1e-3, 1], "points": 4}),
        ("optimizers.sgd.momentum=.9", ["optimizers", "sgd", "momentum"], 0.9),
        ("optimizers.sgd.target=mod:Class", ["optimizers", "sgd", "target"], "mod:Class"),
        ("optimizers.adam.v2.betas.1=0.5", ["optimizers", "adam.v2", "betas"], [0.9, 0.5]),
        ("optimizers.new.target=lion", ["optimizers", "new"], {"target": "lion"}),
        ("experiments.one.tasks.count=5", ["experiments", "one", "tasks", "count"], 5),
        ("experiments.one.tasks.count=5", ["experiments", "two.b", "tasks", "count"], 3),
        ("experiments.one.models.small.hidden.0=7", ["experiments", "one", "models", "small", "hidden"], [7, 20]),
        ("experiments.one.protocol.batch_size=8", ["experiments", "one", "protocol", "batch_size"], 8),
        ("experiments.two.b.protocol.batch_size=8", ["experiments", "two.b", "protocol", "batch_size"], 8),
        ("experiments.two.b.protocol.early_stopping.patience=9", ["experiments", "two.b", "protocol", "early_stopping"],
         EarlyStopping(patience=9).model_dump()),
        ("experiments.one.optimizers.sgd.lr=1", ["experiments", "one", "optimizers"], {"sgd": {"lr": 1}, "adam": {}}),
        ("experiments.one.optimizers=[adam]", ["experiments", "one", "optimizers"], {"adam": {}}),
        ("experiments.one.models={m: {kind: mlp}}", ["experiments", "one", "models", "m", "kind"], "mlp"),
    ],
)  # fmt: skip
def test_an_override_changes_the_named_value(override: str, path: list[str], value: Any, file: Path) -> None:
    found: Any = plain(load_suite(file, [override]))
    for part in path:
        found = found[part]
    assert found == value


def test_an_override_changes_nothing_else(file: Path) -> None:
    changed, original = plain(load_suite(file, ["optimizers.sgd.lr=9"])), plain(load_suite(file))
    assert changed["optimizers"]["sgd"].pop("lr") == 9
    assert original["optimizers"]["sgd"].pop("lr") == 0.1
    assert changed == original


def test_later_overrides_win_and_build_on_earlier_ones(file: Path) -> None:
    overrides = ["optimizers.x.target=sgd", "optimizers.x.lr=1", "optimizers.x.lr=2"]
    assert load_suite(file, overrides).optimizers["x"].model_dump() == {"target": "sgd", "lr": 2}


def test_the_longest_existing_name_is_matched(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(TEXT.replace("  adam: {target: adam}", "  adam: {target: adam, v2: {lr: 1}}"))
    suite = load_suite(path, ["optimizers.adam.v2.lr=3"])
    assert suite.optimizers["adam.v2"].hyperparameters["lr"] == 3
    assert suite.optimizers["adam"].hyperparameters == {"v2": {"lr": 1}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds", "expected key.path=value"),
        ("=3", "the key has an empty part; expected key.path=value"),
        ("a..b=3", "the key has an empty part; expected key.path=value"),
        ("seeds=", "the value is empty; write null for no value, or '' for empty text"),
        ("seeds=[1", "value:1:3: invalid YAML: expected ',' or ']'"),
        ("seeds={a: 1, a: 2}", "value:1:8: the key 'a' is already on line 1"),
        ("seed=.nan", "expected a finite number, got .nan"),
        ("seed=yes", "'yes' is text in YAML 1.2 and a bool in 1.1: write true or false (or null for none)"),
        ("sedes=3", "unknown key 'sedes'; did you mean 'seeds'?"),
        ("seeds=0", "seeds: expected at least 1 seed, got 0"),
        ("seeds.0=1", "'seeds' is neither a mapping nor a list; it has no '0'"),
        ("name.x=1", "'name' is neither a mapping nor a list; it has no 'x'"),
        ("experiments.one.models.small.hidden.2=1", "'experiments.one.models.small.hidden' is a list: expected an"),
        ("experiments.one.models.small.hidden.-1=1", "'experiments.one.models.small.hidden' is a list: expected an"),
        ("experiments.one.protocol.batch_sise=1", "experiments.one.protocol: unknown key 'batch_sise'; did you mean"),
        ("experiments.one.protocl.batch_size=1", "experiments.one: unknown key 'protocl'; did you mean 'protocol'?"),
        ("experiments.on.protocol.batch_size=1", "experiments: unknown experiment 'on'; did you mean 'one'?"),
        ("experiments.one.models.smal.hidden=[1]", "experiments.one.models: unknown model 'smal'; did you mean"),
        ("optimizers.adamm.lr=1", "optimizers: unknown optimizer 'adamm'; did you mean 'adam'?"),
        ("experiments.one.optimizers.adm.lr=1", "experiments.one.optimizers: unknown optimizer 'adm'; did you mean"),
        ("experiments.one.tasks.kind=rotate", "experiments.one.tasks.kind: unknown kind 'rotate'; did you mean"),
        ("experiments.one.protocol={max_epochs: x}", "experiments.one.protocol.max_epochs: expected a number, got 'x'"),
        ("experiments.new={models: {m: {kind: mlp}}}", "experiments.new: expected the key 'tasks'"),
        ("optimizers.sgd.lr=[1, 1]", "optimizers.sgd: 'lr' lists the value 1 twice"),
    ],
)  # fmt: skip
def test_errors_quote_the_override_and_the_nearest_name(override: str, message: str, file: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_suite(file, [override])
    assert str(caught.value).startswith(f"--set {override}: {message}")
    assert "\n" not in str(caught.value)


def test_an_error_in_the_file_keeps_its_place_next_to_that_of_an_override(file: Path) -> None:
    file.write_text(TEXT.replace("seeds: 3", "seeds: 0"))
    with pytest.raises(SuiteError) as caught:
        load_suite(file, ["stage=x"])
    assert str(caught.value).split("\n") == [
        "--set stage=x: stage: unknown choice 'x' (valid: eval, tune)",
        f"{file}:2:8: seeds: expected at least 1 seed, got 0",
    ]
    assert load_suite(file, ["seeds=1"]).seeds == [0]
