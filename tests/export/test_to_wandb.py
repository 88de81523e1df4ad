"""Runs in Weights & Biases: its reader of offline files returns the numbers of the tables, as float64.

CI does not install W&B because that takes 15 seconds: `pip install -e '.[wandb]'`, then `pytest -m slow`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import optbench
from optbench.cli import main
from tests.tracked_runs import logged_series, tracked_run, trials

pytest.importorskip("wandb", minversion="0.31")  # its command line prints records as JSON

from optbench.export.to_wandb import LONGEST, distinct_keys, shortened

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_train_here")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, _train_here: None) -> Path:
    return tracked_run(tmp_path_factory.mktemp("tracked"))


@pytest.fixture(scope="module")
def logs(run: Path) -> Path:
    """Export despite W&B settings that disable it, name another project, or put the files elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("MODE", "disabled"), ("PROJECT", "other"), ("DIR", str(run)), ("RUN_GROUP", "other")):
            patch.setenv(f"WANDB_{name}", value)
        assert main(["export", str(run), "--to", "wandb", str(run.parent / "logs")]) == 0
        assert os.environ["WANDB_MODE"] == "disabled"
    return run.parent / "logs"


def records(folder: Path) -> list[dict[str, Any]]:
    """Return all records of an offline run."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def read(logs: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the records of every offline run by name."""
    every = [records(folder) for folder in sorted((logs / "wandb").glob("offline-run-*"))]
    return {one["run"]["display_name"]: found for found in every for one in found if one["type"] == "run"}


def about(found: list[dict[str, Any]]) -> dict[str, Any]:
    (one,) = (record["run"] for record in found if record["type"] == "run")
    return dict(one)


def history(found: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Map each name to its positions on the axis defined for W&B, and its values."""
    axes: dict[str, str] = {}
    for record in found:
        if record["type"] == "metric" and "step_metric" in record["metric"]:
            axes[record["metric"]["glob_name"].removesuffix("/*")] = record["metric"]["step_metric"]
    series: dict[str, list[tuple[int, float]]] = {}
    for record in found:
        if record["type"] == "history":
            item = record["history"]["item"]
            for name, value in item.items():
                if not name.startswith(("_", "axis/")):
                    series.setdefault(name, []).append((item[axes[name.partition("/")[0]]], float(value)))
    return series


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last values, without those that W&B adds."""
    told: dict[str, Any] = {}
    for record in found:
        if record["type"] == "summary":
            told |= record["summary"].get("update", {})
    return {name: value for name, value in told.items() if not name.startswith("_")}


def test_every_trial_and_the_report_have_an_offline_run(run: Path, read: dict[str, Any]) -> None:
    assert set(read) == {*trials(run).index, "tracked report"}
    for trial, row in trials(run).iterrows():
        one = about(read[str(trial)])
        assert one["project"] == "tracked"
        assert one["run_group"] == str(trial).rpartition("/")[0]
        assert one["job_type"] == "eval"
        assert "host" not in one
        (end,) = (record["exit"] for record in read[str(trial)] if record["type"] == "exit")
        assert end["exit_code"] == (row.status == "failed")


def test_the_series_of_every_trial_agree_with_the_tables(run: Path, read: dict[str, Any]) -> None:
    for trial in trials(run).index:
        assert history(read[trial]) == logged_series(run, trial)


def test_final_metrics_agree_with_reports(run: Path, read: dict[str, Any]) -> None:
    values = optbench.read_run(run).values()
    for trial, row in trials(run).iterrows():
        own = values[(values.trial == trial) & values.value.notna()]
        keys = [name.translate(str.maketrans(" =.", "___")) for name in own.metric]
        expected: dict[str, Any] = {f"final/{key}": value for key, value in zip(keys, own.value, strict=True)}
        expected["status"] = row.status
        if row.status == "failed":
            expected["error"] = "RuntimeError: a shape is <b>wrong</b>"
        if not pd.isna(row.note):
            expected["note"] = row.note
        assert summary(read[str(trial)]) == expected
    assert "final/largest_power_2" in summary(read["small/net/kept/default/seed=0"])


def test_settings_are_those_used_in_training(run: Path, read: dict[str, Any]) -> None:
    for trial, row in trials(run).iterrows():
        keys = {name: row[name] for name in ("experiment", "model", "optimizer", "variant", "seed", "stage")}
        config = about(read[str(trial)])["config"]["update"]
        target = config.pop("target")
        assert {"sgd": "sgd", "kept": "l2-init", "explodes": "sgd"}.get(row.optimizer, target) == target
        del config["_wandb"]
        assert config == {"trial": trial, "run": "tracked", **keys, **json.loads(row.hyperparameters)}


def test_the_report_is_an_artifact(logs: Path, read: dict[str, Any]) -> None:
    (artifact,) = (record["artifact"] for record in read["tracked report"] if record["type"] == "artifact")
    assert (artifact["name"], artifact["type"]) == ("tracked-report", "report")
    (file,) = artifact["manifest"]["contents"]
    assert (file["path"], file["local_path"]) == ("report.html", str(logs / "report.html"))
    page = (logs / "report.html").read_bytes()
    assert int(file["size"]) == len(page)
    assert file["digest"] == base64.b64encode(hashlib.md5(page).digest()).decode()
    assert about(read["tracked report"])["config"]["update"]["status"] == "complete"


def test_exporting_again_gives_the_same_ids(run: Path, read: dict[str, Any], tmp_path: Path) -> None:
    assert main(["export", str(run), "--to", "wandb", str(tmp_path / "again")]) == 0
    ids = {folder.name.rpartition("-")[2] for folder in (tmp_path / "again/wandb").glob("offline-run-*")}
    assert ids == {about(found)["run_id"] for found in read.values()}
    assert len(ids) == len(read)


def test_nothing_is_sent(run: Path, tmp_path: Path) -> None:
    """The process and the service of W&B have no network, not even the loopback device."""
    words = ["unshare", "--map-root-user", "--net", sys.executable, "-m", "optbench"]
    if subprocess.run([*words[:3], "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare --net is not allowed here")
    done = subprocess.run([*words, "export", run, "--to", "wandb", tmp_path / "logs"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "logs/wandb").glob("offline-run-*/run-*.wandb"))) == 11


def test_names_are_valid_for_wandb_tables_and_stay_distinct() -> None:
    assert distinct_keys(["a.b", "a b", "a=b", "c"]) == {"a.b": "a_b", "a b": "a_b_2", "a=b": "a_b_3", "c": "c"}
    assert shortened("x" * LONGEST) == "x" * LONGEST
    long = [shortened("x" * LONGEST + end) for end in "ab"]
    assert len(set(long)) == 2
    assert {len(name) for name in long} == {LONGEST}
