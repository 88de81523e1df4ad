"""TensorBoard's HPARAMS page: its columns, and the entries of each trial."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

from optbench.export.run_log import RunLog, TrialLog
from optbench.metrics import Metric


@dataclass(frozen=True)
class HparamsPage:
    """The HPARAMS page of one run. settings: name -> distinct values over all trials, without nulls."""

    run: RunLog
    settings: Mapping[str, tuple[Any, ...]]

    @staticmethod
    def of(run: RunLog) -> HparamsPage:
        found: dict[str, dict[str, Any]] = {}
        for log in run.trials:
            for name, value in _settings(log).items():
                found.setdefault(name, {})[json.dumps(value)] = value
        return HparamsPage(run, {name: tuple(values.values()) for name, values in found.items()})

    def columns(self) -> Any:
        """Return the `Summary.Value` that declares the columns.

        The columns are the settings, starting with those that differ between trials, and the final metrics.
        """
        infos = [_setting_info(name, values) for name, values in self.settings.items()]
        experiment = api_pb2.Experiment(
            name=self.run.name,
            time_created_secs=self.run.created,
            hparam_infos=sorted(infos, key=lambda info: not info.differs),
            metric_infos=[_metric_info(metric) for metric in self.run.metrics],
        )
        return _value(metadata.EXPERIMENT_TAG, experiment=experiment)

    def start(self, log: TrialLog) -> Any:
        """Return the `Summary.Value` that records a trial's settings.

        Each trial is a separate group, because for a group of several seeds, the page would show means that leave out
        diverged trials.
        """
        info = SessionStartInfo(start_time_secs=self.run.created)
        for name, value in _settings(log).items():
            kind = _kind(self.settings[name])
            if kind == api_pb2.DATA_TYPE_BOOL:
                info.hparams[name].bool_value = value
            elif kind == api_pb2.DATA_TYPE_FLOAT64:
                info.hparams[name].number_value = value
            else:
                info.hparams[name].string_value = _text(value)
        return _value(metadata.SESSION_START_INFO_TAG, session_start_info=info)

    def end(self, log: TrialLog) -> Any:
        """Return the `Summary.Value` that records how a trial ended.

        The page distinguishes only success and failure. A diverged trial counts as a success, because it is a result;
        the setting `status` identifies it.
        """
        status = api_pb2.STATUS_FAILURE if log.status == "failed" else api_pb2.STATUS_SUCCESS
        info = SessionEndInfo(status=status, end_time_secs=self.run.created)
        return _value(metadata.SESSION_END_INFO_TAG, session_end_info=info)


def _settings(log: TrialLog) -> dict[str, Any]:
    """Return the settings and the status of a trial by column, without nulls."""
    return {name: value for name, value in {**log.flat_settings, "status": log.status}.items() if value is not None}


def _kind(values: tuple[Any, ...]) -> int:
    """Return the type of a column that has these values."""
    if all(isinstance(value, bool) for value in values):
        return int(api_pb2.DATA_TYPE_BOOL)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return int(api_pb2.DATA_TYPE_FLOAT64)
    return int(api_pb2.DATA_TYPE_STRING)


def _text(value: Any) -> str:
    """Return a value as the content of a text column: text unchanged, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _setting_info(name: str, values: tuple[Any, ...]) -> Any:
    info = api_pb2.HParamInfo(name=name, type=_kind(values), differs=len(values) > 1)
    if info.type == api_pb2.DATA_TYPE_FLOAT64:
        info.domain_interval.min_value, info.domain_interval.max_value = min(values), max(values)
    elif info.type == api_pb2.DATA_TYPE_BOOL:
        info.domain_discrete.extend(sorted(values))
    else:
        info.domain_discrete.extend(sorted(map(_text, values)))
    return info


def _metric_info(metric: Metric) -> Any:
    unit = f" ({metric.unit})" if metric.unit else ""
    better = "" if metric.direction == "neutral" else f"; {metric.direction} is better"
    return api_pb2.MetricInfo(
        name=api_pb2.MetricName(tag=f"final/{metric.name}"),
        display_name=metric.name,
        description=f"{metric.formula}{unit}{better}",
    )


def _value(tag: str, **content: Any) -> Any:
    summary = metadata.create_summary_metadata(HParamsPluginData(**content))
    return Summary.Value(tag=tag, tensor=metadata.NULL_TENSOR, metadata=summary)
