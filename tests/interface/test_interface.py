"""`optbench.run` and its result, in this process: suites as mappings, objects, tables, errors."""

from __future__ import annotations

import inspect
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest
import torch

import optbench
from optbench.cli import main
from optbench.errors import ComparisonError, StoreError, SuiteError, UsageError
from optbench.execution.directory import places
from optbench.store.tables import KEY_COLUMNS
from tests.conftest import report

pytestmark = pytest.mark.usefixtures("_train_here")

SMALL: dict[str, Any] = {
    "name": "small",
    "seeds": 2,
    "optimizers": {"sgd": {"target": "sgd", "lr": 0.1}},
    "experiments": {
        "permuted": {
            "tasks": {"kind": "permuted", "count": 2},
            "models": {"net": {"kind": "mlp", "hidden": [8]}},
            "protocol": {"max_steps": 3, "batch_size": 32, "train_examples": 200, "test_examples": 100},
            "metrics": ["average_accuracy", "forgetting", "effective_rank"],
        }
    },
}


def slowed(factor: float) -> type[torch.optim.Optimizer]:
    """Return a class that is not an attribute of any module."""

    class Slowed(torch.optim.SGD):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, factor * lr)

    return Slowed


class Raising(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        raise RuntimeError("no such thing")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def small(**named: Any) -> optbench.Run:
    return optbench.run(SMALL, device="cpu", jobs=1, **named)


def test_an_object_is_trained_next_to_the_optimizers_of_the_suite(capsys: pytest.CaptureFixture[str]) -> None:
    run = small(optimizers={"mine": {"target": slowed(0.5), "lr": np.float64(0.2)}}, name="one")
    assert capsys.readouterr() == ("", "")
    trials = run.table("trials").set_index(["optimizer", "seed"])
    assert list(trials["status"]) == ["ok"] * 4
    assert trials.loc["sgd", "source_hash"].isna().all()
    assert trials.loc["mine", "source_hash"].nunique() == 1
    copy = (run.path / "plugins" / "Slowed.py").read_text()
    assert "super().__init__(params, factor * lr)" in copy
    assert "# factor = 0.5" in copy
    # Half of twice the learning rate gives the same training from the same start.
    accuracy = run.table("accuracy").pivot(index=["seed", "after_task", "task"], columns="optimizer", values="accuracy")
    assert accuracy["mine"].equals(accuracy["sgd"])
    assert run.status == "complete"
    assert "optbench.run(" in json.loads((run.path / "run.json").read_text())["command"][0]


def test_a_run_with_an_object_can_be_resumed_only_with_the_same_object(capsys: pytest.CaptureFixture[str]) -> None:
    path = small(optimizers={"mine": {"target": slowed(1.0), "lr": 0.1}}, name="made").path
    assert main(["run", "--resume", str(path)]) == 2
    said = "python:Slowed: made from a Python object; resume the run from Python with the same object"
    assert said in capsys.readouterr().err
    again = optbench.run(resume="made", optimizers={"mine": slowed(1.0)}, jobs=1, device="cpu")
    assert len(again.table("trials")) == 4
    # Make one trial look untrained.
    table = parquet.read_table(path / "trials.parquet")
    parquet.write_table(table.slice(0, 3), path / "trials.parquet")
    with pytest.raises(UsageError, match=r"resume .*Slowed.py has changed since the run was made.*force=True"):
        optbench.run(resume=path, optimizers={"mine": slowed(0.25)}, jobs=1, device="cpu")
    assert len(optbench.run(resume=again, optimizers={"mine": slowed(1.0)}, jobs=1, device="cpu").table("trials")) == 4
    for command in (["report", str(path)], ["compare", f"{path}:mine", f"{path}:sgd"]):
        assert main(command) == 0  # neither executes user code


def test_failed_trials_give_rows_and_a_warning() -> None:
    with pytest.warns(
        UserWarning, match="2 of 4 trials failed; the first is permuted/net/bad/default/seed=0, with RuntimeError: no "
    ) as warned:
        run = small(optimizers={"bad": Raising})
    assert warned[0].filename == __file__, "the warning points to the caller"
    assert repr(run).endswith("complete, 4 trials (2 ok, 2 failed)")
    assert "failed" in str(run)
    assert "<table" in run._repr_html_()
    values = run.values()
    assert values.loc[values["status"] == "failed", "value"].isna().all()
    assert set(values["optimizer"]) == {"sgd", "bad"}
    assert run.summary("forgetting").set_index("optimizer")["failed"].to_dict() == {"sgd": 0, "bad": 2}


def test_optimizers_seeds_and_settings_can_be_chosen() -> None:
    suite = {**SMALL, "optimizers": {name: {"target": "sgd", "lr": lr} for name, lr in (("a", 0.1), ("b", 0.2))}}
    named: Any = {"jobs": 1, "device": "cpu", "seeds": [3, 5]}
    run = optbench.run(suite, optimizers=["b"], set={"experiments.permuted.protocol.max_steps": 2}, **named)
    trials = run.table("trials")
    assert trials[["optimizer", "seed"]].values.tolist() == [["b", 3], ["b", 5]]
    assert set(trials["steps"]) == {4}
    both = optbench.run(suite, optimizers={"a": None, "mine": "optbench.optimizers.power_sgd:PowerSgd"}, **named)
    assert list(dict.fromkeys(both.table("trials")["optimizer"])) == ["a", "mine"]
    assert optbench.read_run("latest").id == both.id
    loaded = optbench.run(optbench.load_suite(run.path / "suite.yaml"), **{**named, "seeds": None})
    assert loaded.table("accuracy").equals(run.table("accuracy"))


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"seeds": 0}, UsageError, "seeds: expected at least 1 seed and at most 100000, got 0"),
        ({"jobs": 0}, UsageError, "jobs: expected at least 1, got 0"),
        (
            {"experiments": ["permutd"]},
            UsageError,
            "experiments: unknown experiment 'permutd'; did you mean 'permuted'",
        ),
        ({"optimizers": ["sdg"]}, UsageError, "optimizers: unknown optimizer 'sdg'; did you mean 'sgd'"),
        ({"optimizers": {"mine": {"lr": 1}}}, UsageError, "optimizers.mine: expected a class, a function, a target"),
        ({"suite": {**SMALL, "seedz": 1}}, SuiteError, "^suite: unknown key 'seedz'; did you mean 'seed'"),
        ({"suite": {**SMALL, "name": {1, 2}}}, UsageError, "suite.name: expected a number, text, list, .*, got set"),
        ({"suite": 3}, UsageError, "suite: expected a name, a path, a mapping or a suite, got int"),
        ({"suite": "smok"}, UsageError, "did you mean 'smoke'"),
        ({"suite": None}, UsageError, "suite: expected a name, a path or a mapping"),
        ({"resume": "gone"}, StoreError, "no run 'gone'"),
        ({"name": "latest"}, UsageError, "^name latest"),
    ],
)
def test_errors_use_the_names_of_python_arguments(change: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said) as found:
        optbench.run(**{"suite": SMALL, "device": "cpu", **change})
    assert "--" not in str(found.value)
    assert not Path("runs").exists()


def test_a_misspelt_argument_is_refused_with_the_nearest_one() -> None:
    wrong: dict[str, Any] = {"sees": 3}
    with pytest.raises(TypeError, match=r"^optbench.run\(\): unknown argument 'sees'; did you mean 'seeds'\?"):
        optbench.run("smoke", **wrong)
    assert inspect.signature(optbench.run).parameters["seeds"].default is None


@pytest.fixture(scope="module")
def basins(tmp_path_factory: pytest.TempPathFactory) -> optbench.Run:
    """Run the shipped suite, reduced, with its controls and a diverging optimizer."""
    protocol = {"max_steps": 4, "train_examples": 400, "test_examples": 100}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTBENCH_DATA", os.fspath(tmp_path_factory.mktemp("data")))
        return optbench.run(
            "basins",
            seeds=2,
            optimizers=["sgd", "adam", "shampoo", "sgd-to-adam"],
            set={
                **{f"experiments.permuted-mnist.protocol.{key}": value for key, value in protocol.items()},
                "experiments.permuted-mnist.tasks.count": 2,
                "optimizers.sgd-to-adam.at": [3],
                "optimizers.adam.lr": 1e30,
            },
            runs_dir=tmp_path_factory.mktemp("runs"),
            jobs=1,
            device="cpu",
        )


def test_values_are_exactly_those_of_the_report(basins: optbench.Run, capsys: pytest.CaptureFixture[str]) -> None:
    values, everything = basins.values(), basins.values(controls=True)
    assert set(values["stage"]) == {"eval"}
    assert set(everything["stage"]) == {"eval", "control"}
    pd.testing.assert_frame_equal(values, everything[everything["stage"] == "eval"], check_exact=True)
    rows = json.loads(report(basins.path, "json", capsys))["results"]
    assert rows
    key = ["experiment", "model", "optimizer", "variant", "metric"]
    found = {names: group["value"].tolist() for names, group in values[values["status"] == "ok"].groupby(key)}
    summary = basins.summary().set_index(key)
    assert len(rows) == len(summary)
    for row in rows:
        names = tuple(row[name] for name in key)
        own = [value for value in found.get(names, []) if math.isfinite(value)]
        assert row["n"] == len(own) == summary.loc[names, "n"]
        for name in ("mean", "sd", "median", "q1", "q3"):
            here = summary.loc[names, name]
            assert row[name] == here or (row[name] is None and math.isnan(here))
        if own:
            assert (row["min"], row["max"], row["median"]) == (min(own), max(own), np.median(own))


def test_tables_exclude_controls(basins: optbench.Run) -> None:
    for name in ("trials", "accuracy", "metrics", "summary"):
        table, everything = basins.table(name), basins.table(name, controls=True)
        assert list(table.columns[: len(KEY_COLUMNS)]) == list(KEY_COLUMNS)
        assert set(everything["stage"]) - set(table["stage"]) == {"control"}
    assert len(basins.table("pairs"))
    pd.testing.assert_frame_equal(
        basins.table("summary", controls=True), pd.read_parquet(basins.path / "summary.parquet")
    )
    with pytest.raises(UsageError, match="unknown table 'trails'; did you mean 'trials'"):
        basins.table("trails")


def test_comparisons_agree_with_the_command(basins: optbench.Run, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["compare", f"{basins.path}:shampoo", f"{basins.path}:sgd", "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    with pytest.warns(UserWarning, match="2 seeds are too few") as warned:
        found = optbench.compare(basins, "shampoo", "sgd")
    assert [str(one.message) for one in warned] == said["remarks"]
    rows = found.astype(object).where(found.notna(), None).to_dict("records")
    assert [{key: row[key] for key in said["results"][0]} for row in rows] == said["results"]
    with pytest.warns(UserWarning, match="2 seeds are too few"):
        assert set(optbench.compare(basins.path, "shampoo", "sgd", metric="forgetting")["metric"]) == {"forgetting"}
    with pytest.raises(UsageError, match="unknown optimizer 'shampo'"):
        optbench.compare(basins, "shampo", "sgd")
    with pytest.raises(ComparisonError):
        optbench.compare(basins, "sgd", "sgd", against=basins)


def test_run_directories_have_distinct_names() -> None:
    first, second = (path for path, _ in zip(places(Path("runs"), None, "small"), range(2), strict=False))
    assert second.name == f"{first.name}-2"


def test_a_mapping_can_extend_a_suite_with_files_next_to_it(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "mine.py").write_text("import torch\nclass Mine(torch.optim.SGD): pass\n", encoding="utf-8")
    mine = {"optimizers": {"mine": {"target": "./mine.py:Mine", "lr": 0.1}}}
    (base / "suite.yaml").write_text(json.dumps(SMALL | mine), encoding="utf-8")
    run = optbench.run({"extends": "base/suite.yaml", "seeds": 1}, device="cpu", jobs=1)
    assert list(run.table("trials")["status"]) == ["ok"]
    assert "target: ./base/mine.py:Mine" in (run.path / "suite.yaml").read_text()


def test_every_kind_in_a_suite_can_be_an_object() -> None:
    classes = 3

    def blobs(spread: float = 0.5) -> optbench.Dataset:
        def part(seed: int, count: int) -> optbench.Split:
            generator = torch.Generator().manual_seed(seed)
            targets = torch.arange(count) % classes
            noise = torch.randn(count, 1, 2, 2, generator=generator)
            return optbench.Split(targets[:, None, None, None] + spread * noise, targets)

        return optbench.Dataset("blobs", part(0, 200), part(1, 60), classes)

    class Net(torch.nn.Module):
        def __init__(self, inputs: optbench.InputSpec, outputs: int, width: int = 8) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(math.prod(inputs.shape), width), torch.nn.Linear(width, outputs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.tanh(self.first(x.flatten(1))))

    @optbench.metric(of="accuracy", direction="higher")
    def last_row(accuracy: Any) -> float:
        """Return mean_j R[T,j]."""
        return float(accuracy[-1].mean())

    experiment = {
        **SMALL["experiments"]["permuted"],
        "dataset": {"kind": blobs, "spread": 0.1},
        "models": {"net": {"kind": Net, "width": 6}},
        "metrics": ["average_accuracy", last_row],
        "protocol": {"max_steps": 3, "batch_size": 32, "validation_examples": 40},
    }
    run = optbench.run({**SMALL, "experiments": {"own": experiment}}, device="cpu", jobs=1)
    assert set(run.table("trials")["status"]) == {"ok"}
    values = run.values().pivot(index="trial", columns="metric", values="value")
    assert len(values) == 2
    assert values["last_row"].to_numpy() == pytest.approx(values["average_accuracy"].to_numpy())
    assert {file.name for file in (run.path / "plugins").iterdir()} == {"blobs.py", "Net.py", "last_row.py"}
    assert set(run.table("summary")["metric"]) >= {"last_row", "forgetting"}
