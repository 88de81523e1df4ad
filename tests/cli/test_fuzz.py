"""Random input either works or is refused in one line that gives the place."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from optbench.cli import main
from optbench.errors import CONTROL, SuiteError, UsageError
from optbench.optimizers.registry import check_settings
from optbench.store.parts import write_table
from optbench.suite import load_suite
from tests.conftest import FORMATS
from tests.sent_runs import TABLES, TUNED, nullable, sent_run
from tests.suite.test_faults import GOOD

FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,  # the same examples every time, so that CI does not fail at random
    database=None,
    phases=(Phase.explicit, Phase.generate),  # shrinking takes minutes here
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FEW = settings(FUZZ, max_examples=30)
WORKED = (0, 1, 4)  # 1: a gate failed; 4: nothing was measured, or the runs cannot be compared

FULL = GOOD.replace(
    "    optimizers: [sgd, adam]\n",
    """\
    optimizers: {sgd: {}, adam: {lr: [0.1, 0.2], betas: [0.9, 0.99]}}
    protocol: {early_stopping: {patience: 2}, max_epochs: 1.5}
    metrics: [effective_rank, hoyer]
    pairs: {against: [sgd]}
    twins: [[sgd, adam]]
    tuning: {sgd: {settings: 3, seeds: 2, space: {lr: {log: [0.1, 1.0], points: 3}}, chosen: {lr: 0.1}}}
claims:
  first: {experiment: permuted, metric: forgetting, left: sgd, right: adam, expect: lower, where: {hoyer: {above: 0.1}}}
tune:
  seeds: [7]
  optimizers: {sgd: {lr: [0.1, 0.2]}, adam: {lr: {of: sgd.lr, times: 0.1}}}
""",
)

texts = st.text(st.characters(codec="utf-8"), max_size=6)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(-(2**70), 2**70),
    st.floats(),
    texts,
    st.sampled_from(["sgd", "adam", "permuted", "hoyer", "../x", "\x1b[31m", "a:b", "lr"]),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts | st.sampled_from(["lr", "target", "log", "of"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def faulty_lines(path: Path, *overrides: str) -> list[str]:
    """Load a suite; return the error lines that do not start with a place or are unsuitable for users."""
    try:
        load_suite(path, overrides, check_optimizer=check_settings)
    except (SuiteError, UsageError) as error:
        lines = str(error).split("\n")
        placed = rf"({re.escape(str(path))}:\d+:\d+: |--set )\S"
        return [line for line in lines if len(lines) > 5 or CONTROL.search(line) or not re.match(placed, line)]
    return []


def paths(value: Any, *above: Any) -> list[tuple[Any, ...]]:
    """Return the paths of all elements of a nested value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, item in inner for path in ((*above, key), *paths(item, *above, key))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


@FUZZ
@given(st.data())
def test_a_suite_with_changed_bytes_or_lines_loads_or_is_refused_with_its_place(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    text = bytearray(FULL.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        match data.draw(st.sampled_from(["flip", "insert", "cut", "delete", "double", "swap"])):
            case "flip":
                text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
            case "insert":
                at = data.draw(st.integers(0, len(text)))
                text[at:at] = data.draw(
                    st.sampled_from([b"&a ", b"*a", b"!!", b"[", b"{", b"\n", b"- ", b"<<: ", b"\xff", b"'"])
                )
            case "cut":
                del text[data.draw(st.integers(1, len(text))) :]
                text = text or bytearray(b"x")
            case change:
                lines = text.splitlines(keepends=True)
                i, j = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
                if change == "delete":
                    del lines[i]
                elif change == "double":
                    lines.insert(j, lines[i])
                else:
                    lines[i], lines[j] = lines[j], lines[i]
                text = bytearray(b"".join(lines)) or bytearray(b"x")
    path.write_bytes(text)
    assert faulty_lines(path) == []


@FUZZ
@given(st.data())
def test_a_suite_with_a_replaced_value_loads_or_is_refused_with_its_place(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "values.yaml"
    suite = yaml.safe_load(FULL)
    put(suite, data.draw(st.sampled_from(paths(suite))), data.draw(values))
    path.write_text(json.dumps(suite, ensure_ascii=True), encoding="utf-8")  # JSON is YAML, except for NaN
    assert faulty_lines(path) == []


KEYS = (
    "optimizers",
    "sgd",
    "lr",
    "experiments",
    "permuted",
    "tasks",
    "models",
    "small",
    "hidden",
    "0",
    "-1",
    "tune",
    "x",
)
ODD_VALUES = ("[", "{a: &a *a}", "!!python/name:os.system ''", "a: b: c", "- 1\n- 2")


@FUZZ
@given(
    st.lists(st.sampled_from(KEYS), min_size=1, max_size=5),
    values.map(json.dumps) | texts | st.sampled_from(ODD_VALUES),
    st.sampled_from(["=", "==", "", " = ", "\n="]),
)
@example(["sgd"] * 50, "1", "=")
def test_a_setting_is_applied_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], value: str, between: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "good.yaml"
    if not path.exists():
        path.write_text(FULL, encoding="utf-8")
    assert faulty_lines(path, f"{'.'.join(keys)}{between}{value}") == []


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sent_run(tmp_path_factory.mktemp("sent"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sent_run(tmp_path_factory.mktemp("tuned"), "tuned", TUNED)


def works_or_is_refused(capsys: pytest.CaptureFixture[str], *words: object) -> bool:
    """Return True if `optbench <words>` prints something or gives an error that is suitable for users."""
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    if code in WORKED:
        return bool(out) and "Traceback" not in err
    lines = err.removesuffix("\n").split("\n")
    said = len(lines) <= 5 and all(line.startswith("optbench: ") and not CONTROL.search(line) for line in lines)
    return (code, out) == (2, "") and said


@FEW
@given(st.data())
def test_a_record_with_a_replaced_value_is_shown_or_refused(
    sent: Path,
    tuned: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    data: st.DataObject,
) -> None:
    run = data.draw(st.sampled_from([sent, tuned]))
    file = run / "run.json"
    good = file.read_text(encoding="utf-8")
    record = json.loads(good)
    places = [*paths(record), ("resumed",), ("tune",), ("provenance", "accelerators"), ("provenance", "git")]
    put(record, data.draw(st.sampled_from(places)), data.draw(values))
    try:
        file.write_text(json.dumps(record), encoding="utf-8")
        commands = [
            *(("report", run, "--format", form) for form in ("json", "terminal", "latex")),
            ("compare", f"{run}:adam", f"{run}:switched/at=0"),
            ("run", "--resume", run, "--dry-run"),
        ]
        assert works_or_is_refused(capsys, *data.draw(st.sampled_from(commands)))
        assert main(["list", "runs", "--runs-dir", str(run.parent)]) == 0
    finally:
        file.write_text(good, encoding="utf-8")


words = st.sampled_from(["ok", "diverged", "failed", "features", "global", "hoyer", "\x1b[31m", "../x"])


def of_type(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_string(kind):
        return st.none() | texts | words
    if pa.types.is_integer(kind):
        return st.none() | st.integers(-1, 3) | st.integers(-(2**63), 2**63 - 1)
    if pa.types.is_floating(kind):
        return st.none() | st.floats() | st.floats(0, 1)
    return st.none() | st.lists(st.none() | st.floats(width=32), max_size=6)


@FEW
@given(st.data())
def test_a_table_with_replaced_values_is_shown_or_refused(
    sent: Path, tuned: Path, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    run = data.draw(st.sampled_from([sent, sent, tuned]))
    name = data.draw(st.sampled_from([table for table in TABLES if (run / f"{table}.parquet").exists()]))
    file = run / f"{name}.parquet"
    good = file.read_bytes()
    table = pq.read_table(file)
    rows = table.to_pylist()
    for _ in range(data.draw(st.integers(1, 3))):
        field = data.draw(st.sampled_from(list(table.schema)))
        some = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=3) | st.just(range(len(rows))))
        value = data.draw(of_type(field.type))
        for row in some:
            rows[row][field.name] = value
    match data.draw(st.sampled_from(["", "", "", "double", "drop", "none"])):
        case "double":
            rows.append(rows[0])
        case "drop":
            rows.pop()
        case "none":
            rows = []
    try:
        write_table(pa.Table.from_pylist(rows, schema=nullable(table.schema)), file)
        commands = [("report", run, "--format", form) for form in FORMATS if form != "html"]
        commands.append(("compare", f"{run}:adam", f"{run}:switched/at=0", "--fail-on", "forgetting:+10%"))
        # A page with figures takes ten times as long.
        page = ("report", run, "--format", "html")
        assert works_or_is_refused(capsys, *data.draw(st.sampled_from([*commands, *commands, page])))
    finally:
        file.write_bytes(good)


@FEW
@given(st.data())
def test_a_stored_suite_with_a_replaced_value_is_shown_or_refused(
    sent: Path, tuned: Path, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    run = data.draw(st.sampled_from([sent, tuned]))
    file = run / "suite.yaml"
    good = file.read_text(encoding="utf-8")
    suite = yaml.safe_load(good)
    put(suite, data.draw(st.sampled_from(paths(suite))), data.draw(values))
    try:
        file.write_text(json.dumps(suite), encoding="utf-8")
        commands = [
            *(("report", run, "--format", form) for form in ("json", "terminal", "markdown")),
            ("run", "--resume", run, "--dry-run"),
        ]
        assert works_or_is_refused(capsys, *data.draw(st.sampled_from(commands)))
    finally:
        file.write_text(good, encoding="utf-8")
