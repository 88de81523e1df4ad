"""Broken suite files: each gives one clear line with the right place. Lines and columns count from 1."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from optbench.errors import SuiteError
from optbench.suite import load_suite

GOOD = """\
name: good
seeds: 3
optimizers:
  sgd: {target: sgd, lr: 0.1}
  adam:
    target: adam
    lr: 1e-3
experiments:
  permuted:
    tasks: {kind: permuted, count: 2}
    models:
      small: {kind: mlp, hidden: [10]}
    optimizers: [sgd, adam]
"""

BROKEN_YAML = {
    "empty": ("", "1:1", "empty"),
    "only a comment": ("# nothing\n", "1:1", "empty"),
    "a list": ("- a\n", "1:1", "mapping"),
    "a scalar": ("hello\n", "1:1", "mapping"),
    "null": ("null\n", "1:1", "mapping"),
    "two documents": ("a: 1\n---\nb: 2\n", "2:1", "single document"),
    "unclosed bracket": ("a: [1, 2\n", "2:1", "expected ',' or ']'"),
    "unclosed quote": ("a: 'x\n", "2:1", "quoted scalar"),
    "tab": ("a:\n\tb: 1\n", "2:1", "\\t"),
    "bad indentation": ("a: 1\n  b: 2\n", "2:4", "mapping values"),
    "control character": ("a: 1\nb: x\x07y\n", "2:5", "U+0007"),
    "duplicate key": ("a: 1\nb:\n  c: 1\n  c: 2\n", "4:3", "'c' is already on line 3"),
    "duplicate merge": ("a: &a {}\nb:\n  <<: *a\n  <<: *a\n", "4:3", "'<<' is already on line 3"),
    "python tag": ("a: !!python/object/apply:os.system [ls]\n", "1:4", "!!python/object/apply:os.system"),
    "python tag as key": ("!!python/name:os.system x: 1\n", "1:1", "!!python/name:os.system"),
    "custom tag": ("a: !mine 5\n", "1:4", "!mine"),
    "binary": ("a: !!binary aGk=\n", "1:4", "!!binary"),
    "tag on the wrong node": ("a: !!int [1]\n", "1:4", "!!int"),
    "tag that contradicts its value": ("a: !!float hello\n", "1:4", "'hello' is not a value of the tag !!float"),
    "nan": ("a: .nan\n", "1:4", "finite"),
    "inf": ("a: -.inf\n", "1:4", "finite"),
    "overflow": ("a: 1e999\n", "1:4", "finite"),
    "bare nan": ("a: NaN\n", "1:4", "finite"),
    "huge integer": ("a: " + "9" * 5000 + "\n", "1:4", "64 bits"),
    "octal": ("a: 010\n", "1:4", "octal"),
    "yes": ("a: yes\n", "1:4", "true or false"),
    "undefined alias": ("a: *b\n", "1:4", "undefined alias"),
    "cyclic list": ("a: &a\n- 1\n- *a\n", "1:4", "itself"),
    "cyclic mapping": ("a: &a {b: {c: *a}}\n", "1:4", "itself"),
    "cyclic merge": ("a: &a\n  <<: *a\n", "1:4", "itself"),
    "merge of a scalar": ("a:\n  <<: 5\n", "2:7", "'<<': expected a mapping"),
    "merge of scalars": ("a:\n  <<: [5]\n", "2:8", "'<<': expected a mapping"),
    "list as key": ("? [a, b]\n: 1\n", "1:3", "expected text as a key"),
    "surrogate": ('a: "\\ud800"\n', "1:4", "surrogate"),
    "code point beyond Unicode": ('a: "\\UFFFFFFFF"\n', "1:", "YAML"),
    "too deep": ("[" * 5000, "1:", "deep"),
    "version with thousands of digits": ("%YAML 1." + "1" * 5000 + "\n---\na: 1\n", "1:", "YAML"),
}


def bomb(levels: int, item: str, join: str) -> str:
    lines = [f"x0: &x0 {item}"]
    lines += [f"x{i}: &x{i} " + join.format(", ".join([f"*x{i - 1}"] * 9)) for i in range(1, levels)]
    return "\n".join(lines) + "\n"


BROKEN_YAML["billion laughs"] = (bomb(12, "[lol]", "[{}]"), "", "too large")
BROKEN_YAML["billion merges"] = (bomb(12, "{}", "{{<<: [{}]}}"), "", "too large")
BROKEN_YAML["deep aliases"] = (
    "x0: &x0 [1]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}]\n" for i in range(1, 60)),
    "",
    "deep once",
)


def failure(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SuiteError) as caught:
        load_suite(path)
    return str(caught.value)


@pytest.mark.parametrize("name", BROKEN_YAML)
def test_broken_yaml_is_refused_in_one_line_with_its_place(name: str, tmp_path: Path) -> None:
    text, place, words = BROKEN_YAML[name]
    path = tmp_path / "s.yaml"
    message = failure(path, text)
    assert message.count("\n") == 0
    assert re.match(re.escape(f"{path}:") + r"\d+:\d+: \S", message)
    assert message.startswith(f"{path}:{place}")
    assert words in message


# old text, new text, place, part of the message
BROKEN_SUITES: dict[str, tuple[str, str, str, str]] = {
    "unknown top key": ("name: good", "name: good\nsedes: 3", "2:1", "unknown key 'sedes'; did you mean 'seeds'?"),
    "name missing": ("name: good\n", "", "1:1", "expected the key 'name'"),
    "name with a folder": ("name: good", "name: ../up", "1:7", "name: the name '../up': expected letters"),
    "name starts with a dot": ("name: good", "name: .x", "1:7", "with a letter or a digit first"),
    "name too long": ("name: good", "name: " + "x" * 81, "1:7", "at most 80 characters"),
    "name is a number": ("name: good", "name: 5", "1:7", "name: expected text, got 5"),
    "name ends in a line break": ("name: good", 'name: "good\\n"', "1:7", "letters"),
    "tuning on a seed of the suite": (
        "name: good",
        "name: good\ntune: {seeds: [5, 2]}",
        "2:8",
        "seed 2 is in 'tune.seeds' and in 'seeds'",
    ),
    "tuning of an unknown optimizer": (
        "name: good",
        "name: good\ntune: {optimizers: {sgdd: {lr: [1, 2]}}}",
        "2:21",
        "tune.optimizers: unknown optimizer 'sgdd'; did you mean 'sgd'?",
    ),
    "tuning on no experiment": (
        "name: good",
        "name: good\ntune: {experiments: {permute: {}}}",
        "2:22",
        "tune.experiments: unknown experiment 'permute'; did you mean 'permuted'?",
    ),
    "tuning on no model": (
        "name: good",
        "name: good\ntune: {experiments: {permuted: {models: [smal]}}}",
        "2:42",
        "unknown model in permuted 'smal'; did you mean 'small'?",
    ),
    "negative tuning margin": ("name: good", "name: good\ntune: {learning_margin: -1}", "2:25", "tune.learning_margin"),
    "no seeds": ("seeds: 3", "seeds: 0", "2:8", "expected at least 1 seed, got 0"),
    "too many seeds": ("seeds: 3", "seeds: 10000000", "2:8", "at most 100000"),
    "seeds are text": ("seeds: 3", "seeds: three", "2:8", "seeds: expected a list, got 'three'"),
    "seeds are true": ("seeds: 3", "seeds: true", "2:8", "seeds: expected a list, got true"),
    "empty seeds": ("seeds: 3", "seeds: []", "2:8", "expected at least 1 entry, got 0"),
    "negative seed": ("seeds: 3", "seeds: [0, -1]", "2:12", "seeds.1: expected a number of at least 0, got -1"),
    "seed twice": ("seeds: 3", "seeds: [4, 2, 4]", "2:8", "the seed 4 is listed twice"),
    "seed is a bool": ("seeds: 3", "seeds: 3\nseed: true", "3:7", "seed: expected a whole number, got true"),
    "unknown stage": ("seeds: 3", "seeds: 3\nstage: evl", "3:8", "unknown choice 'evl'; did you mean 'eval'?"),
    "stage is a list": ("seeds: 3", "seeds: 3\nstage: [eval]", "3:8", "expected 'tune' or 'eval', got a list"),
    "target missing": ("target: sgd, ", "", "4:8", "optimizers.sgd: expected the key 'target', as in target: adamw"),
    "kind instead of target": (
        "target: sgd, ",
        "kind: sgd, ",
        "4:9",
        "optimizers.sgd: expected the key 'target', as in target: adamw, got the key 'kind'",
    ),
    "target instead of kind": (
        "kind: mlp, ",
        "target: mlp, ",
        "12:15",
        "models.small: expected the key 'kind' (one of: mlp, cnn, resnet, vit, gpt), got the key 'target'",
    ),
    "target empty": ("target: sgd", "target: ''", "4:17", "at least 1 character"),
    "optimizer is text": (
        "{target: sgd, lr: 0.1}",
        "./mine.py:SignMom",
        "4:8",
        "optimizers.sgd: expected a mapping such as {target: ./mine.py:SignMom}, got './mine.py:SignMom'",
    ),
    "optimizer name": ("  sgd: {", "  s/gd: {", "4:3", "the name 's/gd': expected letters"),
    "hyper-parameter name": ("lr: 0.1", "l-r: 0.1", "4:22", "'l-r' is not a hyper-parameter"),
    "hyper-parameter is empty list": ("lr: 0.1", "lr: []", "4:22", "'lr' is an empty list"),
    "sweep lists twice": ("lr: 0.1", "lr: [0.1, 1e-1]", "4:22", "'lr' lists the value 0.1 twice"),
    "grid without points": ("lr: 0.1", "lr: {log: [1, 10]}", "4:22", "'lr': expected a grid"),
    "grid that includes zero": ("lr: 0.1", "lr: {log: [0, 10], points: 3}", "4:22", "'lr': expected a grid"),
    "no experiments": (GOOD[GOOD.index("experiments") :], "experiments: {}\n", "8:14", "at least 1 entry, got 0"),
    "experiment is null": (GOOD[GOOD.index("    tasks") :], "", "9:12", "experiments.permuted: expected a mapping"),
    "tasks missing": ("    tasks: {kind: permuted, count: 2}\n", "", "10:5", "expected the key 'tasks'"),
    "tasks misspelt": ("    tasks:", "    taks:", "10:5", "unknown key 'taks'; did you mean 'tasks'?"),
    "kind missing": ("kind: permuted, ", "", "10:12", "(one of: permuted, class-incremental, rotated, random-labels, "),
    "kind unknown": ("kind: permuted", "kind: permutd", "10:19", "unknown kind 'permutd'; did you mean 'permuted'?"),
    "kind a list": ("kind: permuted", "kind: [permuted]", "10:19", "expected text, got a list"),
    "key of another kind": ("count: 2", "angles: [1]", "10:29", "tasks: unknown key 'angles'"),
    "count is text": ("count: 2", "count: '2'", "10:36", "tasks.count: expected a whole number, got '2'"),
    "count is zero": ("count: 2", "count: 0", "10:36", "expected a number of at least 1, got 0"),
    "count is broken": ("count: 2", "count: 2.5", "10:36", "expected a whole number, got 2.5"),
    "width is text": (
        "hidden: [10]",
        "hidden: [10, x]",
        "12:39",
        "models.small.hidden.1: expected a whole number, got 'x'",
    ),
    "width is no list": ("hidden: [10]", "hidden: 10", "12:34", "expected a list, got 10"),
    "model name": ("      small:", "      ../small:", "12:7", "the name '../small': expected letters"),
    "unknown optimizer": ("[sgd, adam]", "[sgd, adm]", "13:23", "unknown optimizer 'adm'; did you mean 'adam'?"),
    "unknown optimizer as key": ("[sgd, adam]", "{adm: {}}", "13:18", "unknown optimizer 'adm'; did you mean 'adam'?"),
    "optimizer listed twice": ("[sgd, adam]", "[sgd, sgd]", "13:17", "the optimizer 'sgd' is listed twice"),
    "optimizers are numbers": ("[sgd, adam]", "[1, 2]", "13:17", "expected a list of optimizer names"),
    "optimizers are empty": ("[sgd, adam]", "[]", "13:17", "at least 1 entry"),
    "target in an override": ("[sgd, adam]", "{adam: {target: sgd}}", "13:25", "expected only hyper-parameters"),
    "name in an override": (
        "[sgd, adam]",
        "{adam: {l-r: 1}}",
        "13:25",
        "the name 'l-r': expected letters, digits",
    ),
    "sweep in an override": ("[sgd, adam]", "{adam: {lr: []}}", "13:25", "'lr' is an empty list"),
    "metric twice": (
        "[sgd, adam]",
        "[sgd]\n    metrics: [hoyer, hoyer]",
        "14:14",
        "the metric 'hoyer' is listed twice",
    ),
    "zero epochs": ("[sgd, adam]", "[sgd]\n    protocol: {max_epochs: 0}", "14:28", "expected a number above 0, got 0"),
    "early stopping": (
        "[sgd, adam]",
        "[sgd]\n    protocol: {early_stopping: {on: tset}}",
        "14:37",
        "early_stopping.on: unknown choice 'tset'; did you mean 'test'?",
    ),
    "equal loss without a target": (
        "[sgd, adam]",
        "[sgd]\n    protocol: {early_stopping: {on: train_loss}}",
        "14:32",
        "early_stopping: expected the key 'target' with on: train_loss, as in {on: train_loss, target: 0.1}",
    ),
    "target and patience": (
        "[sgd, adam]",
        "[sgd]\n    protocol: {early_stopping: {on: train_loss, target: 0.1, patience: 2}}",
        "14:62",
        "early_stopping: 'patience' cannot be combined with 'target'",
    ),
    "target of a held-out loss": (
        "[sgd, adam]",
        "[sgd]\n    protocol: {early_stopping: {on: test, target: 0.1}}",
        "14:43",
        "early_stopping: 'target' needs on: train_loss, got on: test",
    ),
    "target is not a loss": (
        "[sgd, adam]",
        "[sgd]\n    protocol: {early_stopping: {on: train_loss, target: 0}}",
        "14:57",
        "early_stopping.target: expected a number above 0, got 0",
    ),
    "decay of a cosine": (
        "[sgd, adam]",
        "[sgd]\n    protocol: {schedule: {kind: cosine, decay: 0.1}}",
        "14:41",
        "schedule: 'decay': expected kind: wsd, got kind: cosine ('decay: null' removes it)",
    ),
    "floor of a constant schedule": (
        "[sgd, adam]",
        "[sgd]\n    protocol: {schedule: {kind: constant, floor: 0.1}}",
        "14:43",
        "schedule: 'floor': expected kind: linear or cosine or wsd, got kind: constant",
    ),
    "warm-up and decay too long together": (
        "[sgd, adam]",
        "[sgd]\n    protocol: {schedule: {kind: wsd, warmup: 0.5, decay: 0.6}}",
        "14:26",
        "schedule: expected 'warmup' and 'decay' to add up to at most 1, got 0.5 and 0.6",
    ),
    "schedule without a kind": (
        "[sgd, adam]",
        "[sgd]\n    protocol: {schedule: {warmup: 0.1}}",
        "14:26",
        "schedule: expected the key 'kind'",
    ),
    "warm-up over the whole training": (
        "[sgd, adam]",
        "[sgd]\n    protocol: {schedule: {kind: linear, warmup: 1}}",
        "14:49",
        "schedule.warmup: expected a number below 1, got 1",
    ),
    "key with a line break": ("seeds: 3", 'seeds: 3\n"a\\nb": 1', "3:1", "unknown key 'a\\nb'"),
}


@pytest.mark.parametrize("name", BROKEN_SUITES)
def test_a_broken_suite_is_refused_in_one_line_with_its_place(name: str, tmp_path: Path) -> None:
    old, new, place, words = BROKEN_SUITES[name]
    assert old in GOOD
    path = tmp_path / "s.yaml"
    message = failure(path, GOOD.replace(old, new, 1))
    assert message.count("\n") == 0, message
    assert message.startswith(f"{path}:{place}: "), message
    assert words in message


def test_at_most_five_errors_are_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    lines = failure(tmp_path / "s.yaml", GOOD.replace("lr: 0.1", "l-r: 1").replace("count: 2", "count: 0")).split("\n")
    assert [line.split(":")[1] for line in lines] == ["4", "10"]
    many = "".join(f"bad{i}: 1\n" for i in range(9))
    lines = failure(tmp_path / "s.yaml", many + GOOD).split("\n")
    assert [line.split(":")[1] for line in lines] == ["1", "2", "3", "4", "5"]
    assert lines[-1].endswith("(and 4 more)")


def test_an_error_in_a_merged_key_is_placed_where_it_was_written(tmp_path: Path) -> None:
    text = GOOD.replace("sgd: {", "sgd: &s {").replace("lr: 0.1", "lr: [1, 1]").replace("    lr: 1e-3", "    <<: *s")
    lines = failure(tmp_path / "s.yaml", text).split("\n")
    # Both optimizers have the error, and it can be fixed in one place.
    assert [line.split(":")[1:3] for line in lines] == [["4", "25"], ["4", "25"]]


def test_a_file_that_is_not_utf8_is_refused_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    assert failure(path, b"a: 1\nb: \xe4\n") == f"{path}:2:4: not UTF-8 text (byte 0xe4)"
    assert failure(path, b"\xef\xbb\xbfb: \xe4\n") == f"{path}:1:4: not UTF-8 text (byte 0xe4)"
    assert failure(path, GOOD.encode("utf-16")) == f"{path}:1:1: not UTF-8 text (byte 0xff)"


def test_files_that_cannot_be_suites_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"gone\.yaml: no such file$"):
        load_suite(tmp_path / "gone.yaml")
    with pytest.raises(SuiteError, match=r": expected a suite file, got a directory$"):
        load_suite(tmp_path)
    with pytest.raises(SuiteError, match=r": cannot be read: "):
        load_suite(tmp_path / "a\0b")
    path = tmp_path / "large.yaml"
    assert failure(path, GOOD + "#" * (1 << 20)) == f"{path}:1:1: larger than 1024 KiB, the limit for a suite"
