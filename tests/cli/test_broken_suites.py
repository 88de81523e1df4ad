"""Broken suite files: `optbench run` and `optbench tune` report the place and the reason, and write nothing."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from tests.refusals import refusal
from tests.suite.test_faults import BROKEN_SUITES, BROKEN_YAML, GOOD

HUGE = 100 << 20


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # so that files written by mistake are noticed


@pytest.mark.parametrize("name", [*BROKEN_YAML, *BROKEN_SUITES])
def test_a_broken_suite_is_refused_before_anything_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in BROKEN_YAML:
        text, place, words = BROKEN_YAML[name]
    else:
        old, new, place, words = BROKEN_SUITES[name]
        text = GOOD.replace(old, new, 1)
    path = tmp_path / "s.yaml"
    path.write_bytes(text.encode())
    said = refusal(capsys, tmp_path, "run", path)
    assert said.startswith(f"{path}:{place}")
    assert words in said


@pytest.mark.parametrize("command", [["run", "--dry-run"], ["tune"], ["tune", "--dry-run"], ["run", "--seeds", "2"]])
def test_every_command_refuses_a_broken_suite_with_the_same_message(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    for name in ("count is zero", "name with a folder"):
        old, new, place, words = BROKEN_SUITES[name]
        path.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
        said = refusal(capsys, tmp_path, *command, path)
        assert said.startswith(f"{path}:{place}")
        assert words in said


# Names that only the registries can check: old text, new text, place, part of the message
UNKNOWN: dict[str, tuple[str, str, str, str]] = {
    "unknown target": ("target: sgd", "target: sdg", "4:9", "unknown optimizer 'sdg'; did you mean 'sgd'?"),
    "unknown hyper-parameter": ("lr: 0.1", "lrr: 0.1", "4:22", "'lrr' of sgd; did you mean 'lr'?"),
    "learning rate in full": ("lr: 0.1", "learning_rate: 0.1", "4:22", "'learning_rate' of sgd; did you mean 'lr'?"),
    "initials": ("lr: 0.1", "wd: 0.1", "4:22", "'wd' of sgd; did you mean 'weight_decay'?"),
    "learning rate is text": ("lr: 0.1", "lr: fast", "4:22", "'lr' of sgd: expected a number"),
    "learning rate is negative": ("lr: 0.1", "lr: -1", "4:22", "'lr' of sgd: expected a number"),
    "learning rate is a mapping": ("lr: 0.1", "lr: {a: 1}", "4:22", "'lr' of sgd: expected a number"),
    "learning rate is null": ("lr: 0.1", "lr: null", "4:22", "'lr' of sgd: expected a number"),
    "a choice in a list of lists": ("lr: 0.1", "lr: [[1]]", "4:22", "'lr' of sgd: expected a number"),
    "wrapper without base": ("sgd, lr: 0.1", "gradient-noise, base: {}", "4:33", "expected an optimizer"),
    "endlessly nested wrapper": (
        "sgd, lr: 0.1",
        "gradient-noise, base: " + "{target: gradient-noise, base: " * 8 + "{target: unheard-of}" + "}" * 8,
        "4:33",
        "unknown optimizer 'unheard-of'",
    ),
    "unknown preset": ("target: sgd, lr: 0.1", "target: shampoo, preset: fast", "4:26", "'preset'"),
    "preset is a list": ("target: sgd, lr: 0.1", "target: shampoo, preset: [[1]]", "4:26", "'preset'"),
    "unknown metric": ("[sgd, adam]", "[sgd]\n    metrics: [hoyerr]", "14:15", "did you mean 'hoyer'?"),
    "metric of pairs": ("[sgd, adam]", "[sgd]\n    metrics: [loss_barrier]", "14:15", "compares two solutions"),
    "unknown primary metric": ("[sgd, adam]", "[sgd]\n    primary: [x]", "14:15", "unknown metric 'x'"),
    "claim about an unknown metric": (
        "[sgd, adam]",
        "[sgd]\nclaims: {c: {experiment: permuted, metric: x, left: sgd, right: 0, expect: higher}}",
        "14:44",
        "unknown metric 'x'",
    ),
    "too many trials": (
        "lr: 0.1",
        "lr: {log: [1, 9], points: 999}, momentum: {log: [0.1, 0.9], points: 10}, dampening: 0}\n"
        "  sgd2: {target: sgd, lr: {log: [1, 9], points: 999}, momentum: {log: [0.1, 0.9], points: 10}",
        "",
        "at most 200000 trials",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_names_and_kinds_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, place, words = UNKNOWN[name]
    path = tmp_path / "s.yaml"
    text = GOOD.replace(old, new, 1)
    if "trials" in name:
        text = text.replace("seeds: 3", "seeds: 20").replace("    optimizers: [sgd, adam]\n", "")
    path.write_text(text, encoding="utf-8")
    said = refusal(capsys, tmp_path, "run", path)
    assert words in said
    assert said.startswith(f"{path}:{place}")


@pytest.mark.parametrize("unit", [b"a: 1\n", b"[", b"\xff\xfe"])
def test_a_hundred_megabytes_are_refused_without_reading_them(
    unit: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(unit * (2 << 20))
    with path.open("r+b") as file:
        file.truncate(HUGE)  # the rest is a hole; reading it would show in the allocated memory
    try:
        tracemalloc.start()
        started = time.process_time()
        said = refusal(capsys, tmp_path / "nothing", "run", path)
        seconds = time.process_time() - started
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        path.unlink()
    assert said == f"{path}:1:1: larger than 1024 KiB, the limit for a suite"
    assert seconds < 2
    assert peak < 16 << 20, f"{peak >> 20} MiB"


def test_files_that_are_not_suites_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    gone = tmp_path / "gone.yaml"
    gone.symlink_to(tmp_path / "nowhere.yaml")
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    for path, words in (
        (loop, "loop.yaml"),
        (gone, "no such file"),
        (folder, "expected a suite file, got a directory"),
        (tmp_path / "a\0b.yaml", r"a\x00b.yaml"),
        (tmp_path / ("x" * 5000), "no such file"),
        (f"{tmp_path}/s.yaml/deeper.yaml", "no such file"),
        ("", "expected a suite's name or path, got empty text"),
        ("../../../../etc/shadow.yaml", "no such file"),
        ("\x1b[31mred\x1b[0m\n\u202eevil.yaml", r"\x1b[31mred\x1b[0m\n\u202eevil.yaml"),
    ):
        for command in (["run"], ["tune"], ["run", "--dry-run", "--optimizer", "x=a:B"]):
            assert words in refusal(capsys, tmp_path, *command, path)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"name: \xe4\n", "1:7"),
        (GOOD.encode("utf-16"), "1:1"),
        (GOOD.encode("latin-1").replace(b"good", b"g\xf6\xf6d"), "1:8"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "1:1"),
        (b"PK\x03\x04\x14\x00", "1:3"),
        (b"\x7fELF\x02\x01", "1:1"),
        (b"\x00" * 1000, "1:1"),
    ],
)
def test_files_that_are_not_utf8_are_refused_with_the_place(
    data: bytes, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(data)
    assert refusal(capsys, tmp_path, "run", path).startswith(f"{path}:{place}: ")


def test_escape_sequences_in_a_suite_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    for old, new in (
        ("name: good", 'name: "\\e[31mred"'),
        ("  sgd: {", '  "\\e]0;title\\a": {'),
        ("target: sgd", 'target: "\\e[2Jgone"'),
        ("target: sgd", 'target: "./\\e[2J.py:\\e[2J"'),
        ("kind: permuted", 'kind: "\\e[31m"'),
        ("seeds: 3", 'seeds: "\\e[31m\\r\\n"'),
        ("seeds: 3", '"\\e[31m\\u202e": 3'),
    ):
        path.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
        assert "\x1b" not in refusal(capsys, tmp_path, "run", path, lines=5)
