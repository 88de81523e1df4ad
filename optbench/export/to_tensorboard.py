"""Export to TensorBoard: one TensorBoard run per trial, with scalars, settings and texts.

The files consist of TensorBoard's protobuf messages, which are written directly, so neither TensorFlow nor a thread per
file is needed. Scalars are float32, as everywhere in TensorBoard; values outside the range of float32 become infinite.
All events have the time at which the run was created, because the tables do not record when a value was measured.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from optbench.export.hparams_page import HparamsPage
from optbench.export.run_log import RunLog, TrialLog
from optbench.file_names import file_name

Put: TypeAlias = Callable[[int, Sequence[Any]], None]
"""A function that writes values (`Summary.Value`) at a step."""


def write(run: RunLog, folder: Path) -> str:
    """Write event files, with a separate folder for each trial, and return the command that displays the files.

    Raises:
        StoreError: a table of the run is damaged.
        OSError: a file cannot be written.
    """
    page = HparamsPage.of(run)
    with _events(folder, run.created) as put:
        put(0, [page.columns(), _text("run", _table(run.about))])
    for log in run.trials:
        place = folder.joinpath(*(file_name([part]) for part in log.trial.parts))
        place.mkdir(parents=True)
        with _events(place, run.created) as put:
            put(0, [page.start(log)])
            _write_trial(log, put)
            put(log.row.steps, [page.end(log)])
    return f"tensorboard --logdir {shlex.quote(str(folder))}"


def _write_trial(log: TrialLog, put: Put) -> None:
    for entry in log.entries:
        put(entry.at, [_scalar(name, value) for name, value in entry.values.items()])
    put(log.row.steps, [_scalar(f"final/{name}", value) for name, value in log.final.items()])
    put(log.row.steps, [_text(f"trial/{name}", text) for name, text in log.remarks.items()])


@contextlib.contextmanager
def _events(folder: Path, created: float) -> Iterator[Put]:
    """Open a new event file in a folder; all of its events have the time `created`."""
    with (folder / f"events.out.tfevents.{int(created)}.optbench").open("xb") as file:
        records = RecordWriter(file)
        # In this version of the format, a decreasing step does not mean that training was restarted.
        records.write(Event(wall_time=created, file_version="brain.Event:2").SerializeToString())

        def put(step: int, values: Sequence[Any]) -> None:
            if values:
                event = Event(wall_time=created, step=step, summary=Summary(value=values))
                records.write(event.SerializeToString())

        yield put


def _scalar(name: str, value: float) -> Any:
    with np.errstate(over="ignore"):
        return Summary.Value(tag=name, simple_value=float(np.float32(value)))


def _text(name: str, markdown: str) -> Any:
    """Return a value for the TEXT page, which renders Markdown but not HTML."""
    one = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode()], tensor_shape=one)
    plugin = SummaryMetadata.PluginData(plugin_name="text")
    return Summary.Value(tag=name, tensor=tensor, metadata=SummaryMetadata(plugin_data=plugin))


def _table(about: dict[str, Any]) -> str:
    """Return a mapping as a Markdown table."""
    rows = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in about.items()]
    return "\n".join(["| | |", "|---|---|", *rows])
