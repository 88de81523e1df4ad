"""Damaged or malicious run directories: one line gives the fault and its place, and nothing else happens."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from optbench.cli import main
from optbench.store.parts import table_files, write_part
from tests.refusals import refusal
from tests.sent_runs import TABLES, change_record, change_rows, change_schema, commands, copied, sent_run, swap

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sent_run(tmp_path_factory.mktemp("sent"))


@pytest.fixture
def run(sent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # so that files written by mistake are noticed
    return copied(sent, tmp_path)


def written(name: str, data: bytes | str) -> Damage:
    return lambda run: (run / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def replaced(name: str, make: Damage) -> Damage:
    """Replace a file with something else."""

    def damage(run: Path) -> None:
        (run / name).unlink()
        make(run / name)

    return damage


def recorded(**fields: Any) -> Damage:
    return lambda run: change_record(run, lambda record: record.update(fields))


def provenance(**fields: Any) -> Damage:
    return lambda run: change_record(run, lambda record: record["provenance"].update(fields))


RECORDS: dict[str, tuple[Damage, str]] = {
    "empty": (written("run.json", ""), "unreadable"),
    "blank": (written("run.json", " \n"), "unreadable"),
    "no JSON": (written("run.json", "{'a': 1}"), "unreadable"),
    "cut short": (written("run.json", '{"schema_version": 1, "run'), "unreadable"),
    "YAML": (written("run.json", "schema_version: 1\n"), "unreadable"),
    "two values": (written("run.json", '{"schema_version": 1} {}'), "unreadable: Extra data"),
    "a list": (written("run.json", "[1]"), "expected schema version 1, got null"),
    "a number": (written("run.json", "1"), "expected schema version 1, got null"),
    "null": (written("run.json", "null"), "expected schema version 1, got null"),
    "not UTF-8": (written("run.json", b'{"schema_version": 1, "suite": "\xe4"}'), "unreadable: 'utf-8' codec"),
    "UTF-16": (written("run.json", '{"schema_version": 1}'.encode("utf-16")), "unreadable"),
    "NUL": (written("run.json", b"\0" * 100), "unreadable"),
    "deeply nested lists": (written("run.json", "[" * 200_000), "unreadable: nested too deeply"),
    "deeply nested mappings": (written("run.json", '{"a":' * 200_000), "unreadable: nested too deeply"),
    "a number of many digits": (written("run.json", '{"schema_version": ' + "1" * 5000 + "}"), "unreadable"),
    "huge": (lambda run: os.truncate(run / "run.json", 257 << 20), "larger than 256 MiB"),
    "no version": (written("run.json", "{}"), "expected schema version 1, got null"),
    "version from the future": (recorded(schema_version=2), "expected schema version 1, got 2"),
    "version is text": (recorded(schema_version="1"), 'expected schema version 1, got "1"'),
    "version is very long": (recorded(schema_version="x" * 100_000), 'expected schema version 1, got "xxx'),
    "version is NaN": (recorded(schema_version=math.nan), "expected schema version 1, got NaN"),
    "run is a number": (recorded(run=5), "'run': expected text, got 5"),
    "suite is a mapping": (recorded(suite={"a": 1}), "'suite': expected text, got {\"a\": 1}"),
    "suite hash is a list": (recorded(suite_hash=[]), "'suite_hash': expected text, got []"),
    "status is a flag": (recorded(status=True), "'status': expected text, got true"),
    "created is NaN": (recorded(created=math.nan), "'created': expected text, got NaN"),
    "finished is a number": (recorded(finished=1e300), "'finished': expected text, got 1e+300"),
    "version of metrics is text": (
        recorded(metrics_version="new"),
        "'metrics_version': expected a whole number, got \"new\"",
    ),
    "version of metrics is infinite": (
        recorded(metrics_version=math.inf),
        "'metrics_version': expected a whole number",
    ),
    "command is text": (recorded(command="rm -rf"), "'command': expected a list of words, got \"rm -rf\""),
    "command has numbers": (recorded(command=[1]), "'command': expected a list of words, got [1]"),
    "seeds is a number": (recorded(seeds=-1), "'seeds': expected a list of seeds, got -1"),
    "seeds are negative": (recorded(seeds=[-1]), "'seeds': expected a list of seeds, got [-1]"),
    "seeds are huge": (recorded(seeds=[2**70]), "'seeds': expected a list of seeds"),
    "seeds are flags": (recorded(seeds=[True]), "'seeds': expected a list of seeds, got [true]"),
    "provenance is a list": (recorded(provenance=[1, 2]), "'provenance': expected a mapping, got [1, 2]"),
    "git is text": (provenance(git="main"), "'provenance.git': expected a mapping, got \"main\""),
    "accelerators is a number": (
        provenance(accelerators=3),
        "'provenance.accelerators': expected a list of names, got 3",
    ),
    "accelerators are mappings": (provenance(accelerators=[{}]), "'provenance.accelerators': expected a list of names"),
    "resumed is a number": (recorded(resumed=5), "'resumed': expected a list of mappings, got 5"),
    "resumed has text": (recorded(resumed=["x"]), "'resumed': expected a list of mappings, got [\"x\"]"),
    "resumed with a numeric provenance": (
        recorded(resumed=[{"provenance": 5}]),
        "'resumed.provenance': expected a mapping, got 5",
    ),
    "tune is a list": (recorded(tune=[]), "'tune': expected a mapping, got []"),
    "a broken link": (replaced("trials.parquet", lambda p: p.symlink_to("gone")), "got a link that is broken"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_broken_record_is_refused_by_every_command_that_reads_it(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, words = RECORDS[name]
    damage(run)
    for command in commands(run).values():
        said = refusal(capsys, tmp_path, *command)
        assert str(run) in said or str(Path("runs", run.name)) in said
        assert words in said
    assert main(["list", "runs"]) == 0
    listed = capsys.readouterr()
    assert "unreadable" in listed.out
    assert listed.err == ""


SUITES: dict[str, tuple[Damage, str]] = {
    "gone": (lambda run: (run / "suite.yaml").unlink(), "suite.yaml: no such file"),
    "empty": (written("suite.yaml", ""), "suite.yaml:1:1: the file is empty"),
    "no YAML": (written("suite.yaml", "a: [1"), "suite.yaml:1:6: invalid YAML"),
    "not UTF-8": (written("suite.yaml", b"\xff"), "suite.yaml:1:1: not UTF-8"),
    "a folder": (replaced("suite.yaml", lambda p: p.mkdir()), "suite.yaml: expected a suite file, got a directory"),
    "a Python object": (
        written("suite.yaml", "name: !!python/object/apply:os.system ['touch /tmp/optbench-was-here']\n"),
        "suite.yaml:1:7: the tag !!python/object/apply:os.system is not allowed",
    ),
    "a YAML bomb": (
        written(
            "suite.yaml",
            "x0: &x0 [a]\n" + "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 12)),
        ),
        "too large",
    ),
    "huge": (written("suite.yaml", "#" * (2 << 20)), "larger than 1024 KiB"),
    "unknown optimizer": (lambda run: swap(run / "suite.yaml", "target: sgd", "target: sgdd"), "unknown optimizer"),
    "unknown metric": (
        lambda run: swap(run / "suite.yaml", "metric: average_accuracy", "metric: fame"),
        "unknown metric",
    ),
    "too many trials": (
        lambda run: swap(run / "suite.yaml", "seeds: [0, 1]", "seeds: 100000"),
        "at most 200000 trials",
    ),
    "more tasks than were trained": (lambda run: swap(run / "suite.yaml", "count: 2", "count: 3"), "expected 12 rows"),
}


@pytest.mark.parametrize("name", SUITES)
def test_a_broken_suite_in_a_run_is_refused(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, words = SUITES[name]
    damage(run)
    for command in ("report", "compare"):
        assert words in refusal(capsys, tmp_path, *commands(run)[command])
    for command in ("resume", "dry run") if "tasks" not in name else ():
        refusal(capsys, tmp_path, *commands(run)[command])


def test_a_switch_at_a_negative_step_is_refused_by_the_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "suite.yaml"
    suite = yaml.safe_load(file.read_text(encoding="utf-8"))
    suite["optimizers"]["switched"]["at"] = -1
    file.write_text(yaml.safe_dump(suite), encoding="utf-8")
    words = "hyper-parameter 'at' of switch: expected an integer of at least 0"
    assert words in refusal(capsys, tmp_path, *commands(run)["report"])


def cell(table: str, column: str, value: Any, row: int = 1) -> Damage:
    return lambda run: change_rows(run, table, lambda rows: rows[row].update({column: value}))


def twice(table: str) -> Damage:
    return lambda run: change_rows(run, table, lambda rows: rows.append(rows[0]))


def retyped(table: str, column: str, kind: pa.DataType, value: Any) -> Damage:
    def change(found: pa.Table) -> pa.Table:
        i = found.column_names.index(column)
        return found.set_column(i, column, pa.array([value] * len(found), kind))

    return lambda run: change_schema(run, table, change)


def versioned(table: str, version: bytes | None) -> Damage:
    metadata = None if version is None else {b"optbench_schema_version": version}
    return lambda run: change_schema(run, table, lambda found: found.replace_schema_metadata(metadata))


def truncated(table: str) -> Damage:
    def damage(run: Path) -> None:
        file = run / f"{table}.parquet"
        file.write_bytes(file.read_bytes()[:-100])

    return damage


def with_bytes(table: str, column: str) -> Damage:
    """Put bytes that are not UTF-8 into a text column."""

    def change(found: pa.Table) -> pa.Table:
        n = len(found)
        offsets = pa.py_buffer(np.arange(n + 1, dtype=np.int32).tobytes())
        values = pa.Array.from_buffers(pa.string(), n, [None, offsets, pa.py_buffer(b"\xff" * n)])
        return found.set_column(found.column_names.index(column), column, values)

    return lambda run: change_schema(run, table, change)


def without_column(table: str, column: str) -> Damage:
    return lambda run: change_schema(run, table, lambda found: found.drop_columns([column]))


# The report format that reads the table, and part of the message
JSON, HTML = "json", "html"
TABLES_BROKEN: dict[str, tuple[Damage, str, str]] = {
    **{
        f"{table} truncated": (truncated(table), HTML if table in ("spectra", "similarity") else JSON, "unreadable")
        for table in TABLES
    },
    **{
        f"{table} empty": (
            written(f"{table}.parquet", b""),
            HTML if table in ("spectra", "similarity") else JSON,
            "unreadable",
        )
        for table in TABLES
    },
    "trials is text": (written("trials.parquet", "trial,status\n"), JSON, "trials.parquet: unreadable"),
    "trials is a folder": (replaced("trials.parquet", lambda p: p.mkdir()), JSON, "trials.parquet: unreadable"),
    "trials without version": (versioned("trials", None), JSON, "expected schema version 1, got none"),
    "trials from a future version": (versioned("trials", b"2"), JSON, "expected schema version 1, got 2"),
    "version with an escape": (
        versioned("trials", b"\x1b[31m\n\xff"),
        JSON,
        r"expected schema version 1, got \x1b[31m\n",
    ),
    "accuracy from a future version": (
        versioned("accuracy", b"2"),
        JSON,
        "accuracy.parquet: expected schema version 1, got 2",
    ),
    "trials without status": (without_column("trials", "status"), JSON, "lacks the column status"),
    "trials without trial": (without_column("trials", "trial"), JSON, "lacks the column trial"),
    "accuracy without task": (without_column("accuracy", "task"), JSON, "lacks the column task"),
    "steps are text": (retyped("trials", "steps", pa.string(), "many"), JSON, "trials.parquet: unreadable"),
    "steps are fractions": (retyped("trials", "steps", pa.float64(), 1.5), JSON, "trials.parquet: unreadable"),
    "status is a list": (
        retyped("trials", "status", pa.list_(pa.string()), ["ok"]),
        JSON,
        "trials.parquet: unreadable",
    ),
    "accuracy is a date": (retyped("accuracy", "accuracy", pa.date32(), 0), JSON, "accuracy.parquet: unreadable"),
    "trial is null": (cell("trials", "trial", None), JSON, "trials.parquet: unreadable"),
    "status is null": (cell("trials", "status", None), JSON, "trials.parquet: unreadable"),
    "trial is no text": (with_bytes("trials", "trial"), JSON, "trials.parquet: unreadable"),
    "layer is no text": (with_bytes("metrics", "layer"), JSON, "metrics.parquet: unreadable"),
    "note is no text": (with_bytes("pairs", "note"), JSON, "pairs.parquet: unreadable"),
    "trial twice": (twice("trials"), JSON, "the trial early/narrow/sgd/default/seed=0 is listed twice"),
    "status unknown": (
        cell("trials", "status", "fine"),
        JSON,
        "row 2: 'status': expected ok, diverged or failed, got 'fine'",
    ),
    "status with an escape": (cell("trials", "status", "\x1b[2J\n"), JSON, r"got '\x1b[2J\n'"),
    "status is very long": (
        cell("trials", "status", "x" * 1_000_000),
        JSON,
        "'status': expected ok, diverged or failed, got 'xxx",
    ),
    "steps negative": (cell("trials", "steps", -1), JSON, "row 2: 'steps': expected a whole number from 0"),
    "steps huge": (cell("trials", "steps", 2**62), JSON, "row 2: 'steps': expected a whole number from 0"),
    "parameters negative": (cell("trials", "parameters", -5), JSON, "'parameters': expected a whole number from 0"),
    "seed negative": (cell("trials", "seed", -5), JSON, "'seed': expected a whole number from 0"),
    "seconds negative": (cell("trials", "train_seconds", -1.0), JSON, "'train_seconds': expected a number from 0"),
    "seconds too large": (cell("trials", "train_seconds", 1e308), JSON, "'train_seconds': expected a number from 0"),
    "after_task negative": (
        cell("accuracy", "after_task", -5),
        JSON,
        "row 2: 'after_task': expected a whole number from 0",
    ),
    "after_task too large": (
        cell("accuracy", "after_task", 2**40),
        JSON,
        "'after_task': expected a whole number from 0 to 10000",
    ),
    "after_task beyond the tasks": (
        cell("accuracy", "after_task", 3),
        JSON,
        "expected 6 rows, for tasks 1 to 2 after tasks 0 to 2",
    ),
    "task 0": (cell("accuracy", "task", 0), JSON, "'task': expected a whole number from 1"),
    "task beyond the tasks": (
        cell("accuracy", "task", 9999),
        JSON,
        "expected 6 rows, for tasks 1 to 2 after tasks 0 to 2",
    ),
    "accuracy duplicated": (cell("accuracy", "task", 1), JSON, "the accuracy on task 1 after task 0 is listed twice"),
    "accuracy missing": (
        lambda run: change_rows(run, "accuracy", lambda rows: rows.pop()),
        JSON,
        "expected 6 rows, for tasks 1 to 2 after tasks 0 to 2, got 5 rows up to task 2",
    ),
    "all accuracies duplicated": (twice("accuracy"), JSON, "expected 6 rows"),
    "accuracy above 1": (
        cell("accuracy", "accuracy", 1.5),
        JSON,
        "row 2: 'accuracy': expected a number from 0 to 1, got 1.5",
    ),
    "accuracy below 0": (
        cell("accuracy", "accuracy", -0.1),
        JSON,
        "'accuracy': expected a number from 0 to 1, got -0.1",
    ),
    "value too large": (cell("metrics", "value", 1e308), JSON, "'value': expected a number from -1e+100 to 1e+100"),
    "value too large after an infinity": (
        lambda run: change_rows(
            run, "metrics", lambda rows: (rows[0].update(value=math.inf), rows[1].update(value=1e200))
        ),
        JSON,
        "row 2: 'value': expected a number from -1e+100 to 1e+100, got 1e+200",
    ),
    "cosine of 7": (cell("similarity", "cosine", 7.0), HTML, "'cosine': expected a number from -1 to 1, got 7.0"),
    "class too large": (
        cell("similarity", "class_a", 10**7),
        HTML,
        "'class_a': expected a whole number from 0 to 999",
    ),
    "class negative": (cell("similarity", "class_b", -1), HTML, "'class_b': expected a whole number from 0 to 999"),
    "index negative": (cell("spectra", "index", -1), HTML, "'index': expected a whole number from 0"),
    "eigenvalue too large": (cell("spectra", "eigenvalue", 1e300), HTML, "'eigenvalue': expected a number from"),
    "keep infinite": (cell("pruning", "keep", math.inf), JSON, "'keep': expected a number from 0 to 1, got inf"),
    "keep is NaN": (cell("pruning", "keep", math.nan), JSON, "'keep': expected a number from 0 to 1, got nan"),
    "keep of 20": (cell("pruning", "keep", 20.0), JSON, "'keep': expected a number from 0 to 1, got 20.0"),
    "sketches of two lengths": (
        cell("sketches", "sketch", [1.0]),
        JSON,
        "'sketch': expected non-empty lists of equal length, got lengths from 1 to 6",
    ),
    "sketch empty": (
        retyped("sketches", "sketch", pa.list_(pa.float32()), []),
        JSON,
        "'sketch': expected non-empty lists",
    ),
    "sketch with a null": (
        cell("sketches", "sketch", [None] * 6),
        JSON,
        "'sketch': expected lists of numbers, got null",
    ),
    "step negative": (cell("sketches", "step", -4), JSON, "'step': expected a whole number from 0"),
    "online accuracy of 2": (
        cell("online", "online_accuracy", 2.0),
        JSON,
        "'online_accuracy': expected a number from 0 to 1",
    ),
    "online task beyond the tasks": (cell("online", "task", 9), JSON, "expected 2 rows, for tasks 1 to 2"),
    "pair of seed -1": (cell("pairs", "seed", -1), JSON, "'seed': expected a whole number from 0"),
    **{
        f"checkpoint at {place!r}": (
            cell("trials", "checkpoint", place),
            JSON,
            "'checkpoint': expected a .safetensors file in the run's own checkpoints/",
        )
        for place in (
            "../../etc/passwd",
            "/etc/passwd",
            "checkpoints/../../../secret.safetensors",
            "checkpoints/",
            "",
            "checkpoints/..",
            "checkpoints/a/b.safetensors",
            "checkpoints\\..\\a.safetensors",
            "checkpoints/model.pt",
            "checkpoints/x.safetensors\n",
            "checkpoints/\x00.safetensors",
            "file:///etc/passwd",
            "~/x.safetensors",
        )
    },
}


@pytest.mark.parametrize("name", TABLES_BROKEN)
def test_a_broken_table_is_refused_with_the_reason(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, form, words = TABLES_BROKEN[name]
    damage(run)
    said = refusal(capsys, tmp_path, "report", run, "--format", form)
    assert said.startswith(f"{run}/")
    assert words in said


@pytest.mark.parametrize("name", ["trials truncated", "trial twice", "status unknown", "checkpoint at '/etc/passwd'"])
def test_other_commands_refuse_a_broken_table_with_the_same_message(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, _, words = TABLES_BROKEN[name]
    damage(run)
    for command in ("compare", "dry run"):
        assert words in refusal(capsys, tmp_path, *commands(run)[command])


def test_a_duplicate_point_of_a_pruning_curve_counts_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def reported() -> str:
        assert main(["report", str(run), "--format", "json"]) == 0
        return capsys.readouterr().out

    before = reported()
    change_rows(run, "pruning", lambda rows: rows.extend([dict(rows[0], accuracy=0.5), *rows]))
    assert '"pruned_accuracy_0.1_layer"' in before
    assert reported() == before


PARTS: dict[str, tuple[Damage, str]] = {
    "without a manifest": (lambda part: (part / "sha256.json").unlink(), "sha256.json: unreadable"),
    "manifest is no JSON": (written("sha256.json", "no"), "sha256.json: unreadable"),
    "manifest is a list": (written("sha256.json", "[]"), "sha256.json: unreadable"),
    "manifest with a wrong checksum": (
        written("sha256.json", '{"trials.parquet": "0"}'),
        "trials.parquet: damaged: its checksum",
    ),
    "manifest names a missing file": (written("sha256.json", '{"gone.parquet": "0"}'), "gone.parquet: unreadable"),
    "manifest empty": (written("sha256.json", "{}"), "expected a file listed in sha256.json"),
    "an extra file": (
        written("extra\x1b[31m.parquet", "1"),
        r"extra\x1b[31m.parquet: expected a file listed in sha256.json",
    ),
    "empty": (lambda part: [file.unlink() for file in part.iterdir()], "sha256.json: unreadable"),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_broken_part_is_refused(name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = {table: pq.read_table(run / f"{table}.parquet") for table in ("trials", "accuracy")}
    (run / "parts").mkdir()
    write_part(run / "parts", "early.narrow.sgd.0", table_files(tables))
    damage, words = PARTS[name]
    damage(run / "parts" / "early.narrow.sgd.0")
    for command in ("report", "compare", "dry run"):
        assert words in refusal(capsys, tmp_path, *commands(run)[command])
