"""Runs in TensorBoard: its reader returns the numbers of the tables, and its page HPARAMS compares trials.

TensorBoard stores scalars in float32, so a value read equals the nearest float32 of the number in the table.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import optbench
from optbench.cli import main
from optbench.plan import Trial
from optbench.store.tables import CurveRow, Row, TrialRow
from tests.tracked_runs import logged_series, single, tracked_run, trials
from tests.written_runs import rows_of, write_run

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

SMALL = """
name: odd
seeds: 1
optimizers: {sgd: {target: sgd, lr: 0.1}}
experiments:
  e: {tasks: {kind: permuted, count: 3}, models: {m: {kind: mlp, hidden: [10]}}}
"""
pytestmark = pytest.mark.usefixtures("_train_here")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, _train_here: None) -> Path:
    return tracked_run(tmp_path_factory.mktemp("tracked"))


@pytest.fixture(scope="module")
def logs(run: Path) -> Path:
    assert main(["export", str(run), "--to", "tensorboard", str(run.parent / "logs")]) == 0
    return run.parent / "logs"


def read(folder: Path) -> EventAccumulator:
    """Read all events of a folder, without subsampling."""
    return EventAccumulator(str(folder), {"scalars": 0, "tensors": 0}).Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = read(folder)
    return {name: [(one.step, one.value) for one in found.Scalars(name)] for name in found.Tags()["scalars"]}


def texts(folder: Path) -> dict[str, str]:
    found = read(folder)
    names = [name for name in found.Tags()["tensors"] if not name.startswith("_hparams_")]
    return {name: found.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in names}


def test_every_trial_has_a_run_and_controls_have_none(run: Path, logs: Path) -> None:
    places = {str(file.parent.relative_to(logs)) for file in logs.rglob("*tfevents*")}
    assert places == {".", *trials(run).index}
    assert len(places) == 11


def test_the_series_of_every_trial_agree_with_the_tables(run: Path, logs: Path) -> None:
    for trial in trials(run).index:
        found = {name: points for name, points in scalars(logs / trial).items() if not name.startswith("final/")}
        assert found == {
            name: [(at, single(value)) for at, value in points] for name, points in logged_series(run, trial).items()
        }
    ends = [at for at, _ in scalars(logs / "small/net/sgd/lr=0.1/seed=0")["curves/step"]]
    assert ends == [4, 8, 10, 14, 18, 20, 24, 28, 30], "steps continue across tasks"


def test_final_metrics_agree_with_reports_and_tables(run: Path, logs: Path) -> None:
    values = optbench.read_run(run).values()
    summary = pd.read_parquet(run / "summary.parquet")
    for trial, row in trials(run).iterrows():
        told = {
            name.removeprefix("final/"): p for name, p in scalars(logs / trial).items() if name.startswith("final/")
        }
        own = values[(values.trial == trial) & values.value.notna()]
        assert told == {m: [(row.steps, single(v))] for m, v in zip(own.metric, own.value, strict=True)}
        derived = summary[(summary.trial == trial) & summary.value.notna()]
        for metric, value in zip(derived.metric, derived.value, strict=True):
            assert told[metric] == [(row.steps, single(value))]
    metrics = pd.read_parquet(run / "metrics.parquet")
    last = metrics[(metrics.after_task == 3) & metrics.task.isna() & metrics.layer.isna()]
    users = last[last.metric.str.startswith("largest") & last.trial.isin(trials(run).index)]
    assert set(users.metric) == {"largest", "largest power=2"}
    for one in users.itertuples():
        assert scalars(logs / str(one.trial))[f"final/{one.metric}"] == [(30, single(float(one.value)))]


def test_trials_without_a_result_have_their_costs_and_errors(run: Path, logs: Path) -> None:
    diverged, failed = (logs / "small/net" / name / "default/seed=0" for name in ("explodes", "broken"))
    assert "final/forgetting" not in scalars(diverged)
    assert "final/train_seconds" in scalars(diverged)
    assert not [name for name in scalars(failed) if name.startswith(("final/", "curves/"))]
    assert texts(failed) == {"trial/error": "RuntimeError: a shape is <b>wrong</b>"}
    assert (
        texts(logs / "small/net/kept/default/seed=1")["trial/note"] == trials(run).note["small/net/kept/default/seed=1"]
    )


class Page:
    """The data that TensorBoard's server sends to its page HPARAMS."""

    def __init__(self, logs: Path) -> None:
        events = EventMultiplexer().AddRunsFromDirectory(str(logs)).Reload()
        provider = MultiplexerDataProvider(events, str(logs))
        self._asked: Any = (RequestContext(), Context(TBContext(data_provider=provider)), "")
        self.columns = get_experiment.Handler(*self._asked, api_pb2.GetExperimentRequest()).run()

    def rows(self, **column: Any) -> dict[str, Any]:
        """Return the groups of sessions by name. column: a filter."""
        request = api_pb2.ListSessionGroupsRequest(
            allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE], start_index=0, slice_size=100
        )
        if column:
            request.col_params.add(**column)
        found = list_session_groups.Handler(*self._asked, request).run()
        return {group.name: group for group in found.session_groups}


@pytest.fixture(scope="module")
def page(logs: Path) -> Page:
    return Page(logs)


def test_the_page_hparams_has_every_trial_with_its_settings_and_final_metrics(
    run: Path, page: Page, logs: Path
) -> None:
    rows = page.rows()
    assert set(rows) == set(trials(run).index)
    for trial, row in trials(run).iterrows():
        hparams = {name: getattr(value, value.WhichOneof("kind")) for name, value in rows[trial].hparams.items()}
        expected: dict[str, Any] = {name: row[name] for name in ("experiment", "model", "optimizer", "variant", "seed")}
        expected |= {"stage": "eval", "status": row.status, "target": hparams["target"]}
        for name, value in json.loads(row.hyperparameters).items():
            inner = {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
            expected |= {key: json.dumps(v) if isinstance(v, list) else v for key, v in inner.items() if v is not None}
        assert hparams == expected
        (session,) = rows[trial].sessions
        shown = {one.name.tag: one.value for one in session.metric_values}
        assert shown == {name: p[0][1] for name, p in scalars(logs / trial).items() if name.startswith("final/")}
        assert session.status == (api_pb2.STATUS_FAILURE if row.status == "failed" else api_pb2.STATUS_SUCCESS)
    assert rows["small/net/kept/default/seed=0"].hparams["base.target"].string_value == "adam"


def test_the_columns_of_the_page_have_types_for_filtering(run: Path, page: Page) -> None:
    columns = {info.name: info for info in page.columns.hparam_infos}
    assert columns["lr"].type == api_pb2.DATA_TYPE_FLOAT64
    assert (columns["lr"].domain_interval.min_value, columns["lr"].domain_interval.max_value) == (0.1, 1e30)
    assert [v.string_value for v in columns["status"].domain_discrete.values] == ["diverged", "failed", "ok"]
    assert columns["nesterov"].type == api_pb2.DATA_TYPE_BOOL
    assert {name for name, info in columns.items() if info.differs} >= {"lr", "optimizer", "seed", "status", "target"}
    assert not columns["experiment"].differs
    metrics = [info.name.tag for info in page.columns.metric_infos]
    assert metrics[:2] == ["final/largest", "final/forgetting"], "primary metrics of the suite come first"
    descriptions = {info.display_name: info.description for info in page.columns.metric_infos}
    assert "lower is better" in descriptions["forgetting"]
    chosen = page.rows(hparam="optimizer", filter_discrete={"values": [{"string_value": "kept"}]})
    assert set(chosen) == {f"small/net/kept/default/seed={seed}" for seed in (0, 1)}
    chosen = page.rows(hparam="lr", filter_interval={"min_value": 0.15, "max_value": 0.5}, exclude_missing_values=True)
    assert set(chosen) == {f"small/net/sgd/lr=0.2/seed={seed}" for seed in (0, 1)}


def test_the_report_is_next_to_the_logs_and_the_run_is_described_in_a_text(run: Path, logs: Path) -> None:
    assert main(["report", str(run), "-o", str(logs.parent / "own.html")]) == 0
    assert (logs / "report.html").read_text(encoding="utf-8") == (logs.parent / "own.html").read_text(encoding="utf-8")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    about = texts(logs)["run"]
    assert f"| torch | {record['provenance']['torch']} |" in about
    assert "| status | complete |" in about
    assert {one.wall_time for one in read(logs / "small/net/kept/default/seed=0").Scalars("curves/lr")} == {
        pd.Timestamp(record["created"]).timestamp()
    }


def test_nulls_are_omitted_and_nan_and_values_beyond_float32_are_kept(tmp_path: Path) -> None:
    losses = [None, math.nan, math.inf, 1e39, -1e39, 1e-46, 0.1]
    curves = [CurveRow(1, step, 0.0, loss, None, None) for step, loss in enumerate(losses)]
    path = write_run(tmp_path, SMALL, lambda trial: [*rows_of(), *curves])
    assert main(["export", str(path), "--to", "tensorboard", str(tmp_path / "logs")]) == 0
    found = scalars(tmp_path / "logs/e/m/sgd/default/seed=0")
    assert "curves/eval_loss" not in found
    (first, nan), *rest = found["curves/train_loss"]
    assert first == 1
    assert math.isnan(nan)
    assert rest == [(2, math.inf), (3, math.inf), (4, -math.inf), (5, 0.0), (6, single(0.1))]
    assert found["accuracy/task_2"] == [(0, single(0.1)), (1, single(0.1)), (2, single(0.8)), (3, single(0.7))]


def test_settings_of_mixed_types_are_texts_and_conflicting_names_are_distinguished(tmp_path: Path) -> None:
    sizes: list[str | int | None] = ["auto", 8, None]

    def rows(trial: Trial) -> list[Row]:
        first, *others = rows_of()
        assert isinstance(first, TrialRow)
        given = json.dumps({"size": sizes[trial.seed], "seed": 5, "status": "warm"})
        return [dataclasses.replace(first, hyperparameters=given), *others]

    path = write_run(tmp_path, SMALL.replace("seeds: 1", "seeds: 3").replace("models: {m:", "models: {A_b:"), rows)
    assert main(["export", str(path), "--to", "tensorboard", str(tmp_path / "logs")]) == 0
    page = Page(tmp_path / "logs")
    shown = {row.hparams["seed"].number_value: dict(row.hparams) for row in page.rows().values()}
    assert [shown[seed]["size"].string_value if "size" in shown[seed] else None for seed in range(3)] == [
        "auto",
        "8",
        None,
    ]
    assert shown[0]["hyperparameters.seed"].number_value == 5
    assert (shown[0]["status"].string_value, shown[0]["hyperparameters.status"].string_value) == ("ok", "warm")
    (size,) = (info for info in page.columns.hparam_infos if info.name == "size")
    assert (size.type, [v.string_value for v in size.domain_discrete.values]) == (
        api_pb2.DATA_TYPE_STRING,
        ["8", "auto"],
    )
    # Folder names differ even on a file system that ignores case.
    assert all(name.startswith("e/A_b@") for name in page.rows())
