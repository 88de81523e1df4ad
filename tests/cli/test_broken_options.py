"""Invalid options: one line names the option and what it expects; nothing is trained or written."""

from __future__ import annotations

from pathlib import Path

import pytest

from optbench.cli import main
from tests.refusals import refusal
from tests.suite.test_faults import GOOD

DEEP = ".".join("a" * 50)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(GOOD, encoding="utf-8")


# The setting, and part of the message
SETTINGS: dict[str, tuple[str, str]] = {
    "nothing": ("", "expected key.path=value"),
    "no value": ("seeds", "expected key.path=value"),
    "an empty value": ("seeds=", "the value is empty"),
    "an empty key": ("=5", "the key has an empty part"),
    "an empty part": ("a..b=5", "the key has an empty part"),
    "only dots": ("...=5", "the key has an empty part"),
    "unknown key": ("sedes=5", "unknown key 'sedes'; did you mean 'seeds'?"),
    "unknown experiment": (
        "experiments.permutd.checkpoints=true",
        "unknown experiment 'permutd'; did you mean 'permuted'?",
    ),
    "unknown optimizer": ("optimizers.sgdd.lr=1", "unknown optimizer 'sgdd'; did you mean 'sgd'?"),
    "key below a number": ("optimizers.sgd.lr.a=1", "'optimizers.sgd.lr' is neither a mapping nor a list"),
    "key below text": ("name.a=1", "'name' is neither a mapping nor a list"),
    "index after the end": ("experiments.permuted.models.small.hidden.7=1", "expected an index from 0 to 0, got '7'"),
    "index before the start": (
        "experiments.permuted.models.small.hidden.-1=1",
        "expected an index from 0 to 0, got '-1'",
    ),
    "key too deep": (f"optimizers.sgd.{DEEP}=1", "the key has more than 40 parts"),
    "key much too deep": ("a." * 100_000 + "b=1", "the key has more than 40 parts"),
    "value too deep": ("name=" + "[" * 5000, "deep"),
    "value is no YAML": ("name=[1", "invalid YAML"),
    "two YAML documents": ("name=a\n---\nb", "single document"),
    "an alias": ("name=*a", "undefined alias"),
    "a cycle": ("name=&a [*a]", "itself"),
    "a YAML bomb": (
        "name=[&a [1,1,1,1,1,1,1,1,1], "
        + ", ".join(f"&{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(9))
        + "]",
        "too large",
    ),
    "a Python object": ("name=!!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system"),
    "duplicate keys": ("optimizers.sgd={target: sgd, target: adam}", "'target' is already on line 1"),
    "NaN": ("optimizers.sgd.lr=.nan", "finite"),
    "infinity": ("optimizers.sgd.lr=-.inf", "finite"),
    "overflow": ("optimizers.sgd.lr=1e999", "finite"),
    "huge": ("seed=" + "9" * 5000, "64 bits"),
    "negative seed": ("seeds=[-1]", "expected a number of at least 0, got -1"),
    "negative seed of the suite": ("seed=-1", "expected a number of at least 0, got -1"),
    "no seeds": ("seeds=[]", "expected at least 1 entry, got 0"),
    "seeds twice": ("seeds=[1, 1]", "the seed 1 is listed twice"),
    "name with a folder": ("name=../x", "the name '../x': expected letters"),
    "name with a line break": ('name="a\\nb"', r"the name 'a\nb': expected letters"),
    "name with an escape": ('name="\\e[31m"', r"the name '\x1b[31m': expected letters"),
    "an escape in the key": ("\x1b[31m=1", r"--set \x1b[31m=1: unknown key '\x1b[31m'"),
    "control character": ("name=a\x07", "U+0007"),
    "half of a surrogate pair": ('name="\\ud800"', "surrogate"),
    "unquoted nan": ("optimizers.sgd.lr=nan", "=nan: expected a finite number, got nan (quote it if it is"),
    "an optimizer is null": ("optimizers.sgd=null", "expected a mapping, got null"),
    "no optimizers": ("optimizers={}", "expected at least 1 entry"),
    "optimizer is a list": ("optimizers=[sgd]", "expected a mapping, got a list"),
    "target is a list": ("optimizers.sgd.target=[sgd]", "expected text, got a list"),
    "learning rate is text": ("optimizers.sgd.lr=fast", "'lr' of sgd: expected a number above 0, got 'fast'"),
    "negative learning rate": ("optimizers.sgd.lr=-0.1", "'lr' of sgd: expected a number above 0, got -0.1"),
    "unknown hyper-parameter": ("optimizers.sgd.speed=1", "unknown hyper-parameter 'speed' of sgd"),
    "unknown dataset": ("experiments.permuted.dataset=mnst", "unknown dataset 'mnst'; did you mean 'mnist'?"),
    "dataset is a path": ("experiments.permuted.dataset=../../etc", "unknown dataset '../../etc'"),
    "infinite epochs": ("experiments.permuted.protocol.max_epochs=.inf", "finite"),
    "empty batch": ("experiments.permuted.protocol.batch_size=0", "expected a number of at least 1, got 0"),
    "too many tasks": ("experiments.permuted.tasks.count=1000000000", "expected a number of at most 10000"),
    "layer too wide": (
        "experiments.permuted.models.small.hidden=[1000000000]",
        "expected a number of at most 100000",
    ),
    "too many trials": (
        "optimizers.sgd={target: sgd, lr: {log: [1, 9], points: 999}, momentum: {log: [0.1, 0.9], points: 10}}",
        "expected at most 200000 trials, got 299730",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_invalid_setting_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, words = SETTINGS[name]
    given = ["--seeds", "30"] if "trials" in name else []
    said = refusal(capsys, tmp_path, "run", "s.yaml", "--set", text, *given)
    assert words in said
    if "dataset 'mnst'" not in words and "trials" not in name and len(text) < 200:
        assert said.startswith("--set "), said


# Options of `run`, and part of the message
OPTIONS: dict[str, tuple[list[str], str]] = {
    "seeds are a word": (["--seeds", "three"], "--seeds three: expected a number of seeds"),
    "seeds are empty": (["--seeds", ""], "--seeds: expected a number of seeds (at least 1)"),
    "seeds are blank": (["--seeds", "  "], "--seeds: expected a number of seeds (at least 1)"),
    "no seeds": (["--seeds", "0"], "--seeds: expected at least 1 seed and at most 100000, got 0"),
    "negative number of seeds": (["--seeds=-3"], "--seeds -3: expected a number of seeds"),
    "negative seed in a list": (["--seeds=0,-3"], "--seeds 0,-3: expected a number of seeds"),
    "seeds are fractions": (["--seeds", "1.5"], "--seeds 1.5: expected a number of seeds"),
    "seeds twice": (["--seeds", "1,1"], "--seeds 1,1: seed 1 is listed twice"),
    "empty entry in seeds": (["--seeds", "1,,2"], "--seeds 1,,2: expected a number of seeds"),
    "only a comma": (["--seeds", ","], "expected a number of seeds"),
    "too many seeds": (["--seeds", "100001"], "expected at least 1 seed and at most 100000"),
    "a seed too large": (["--seeds", f"{2**63},1"], "expected seeds below 2**63, got 9223372036854775808"),
    "non-ASCII digit": (["--seeds", "٣"], "expected a number of seeds"),
    "seeds with an escape": (["--seeds", "\x1b[31m"], r"--seeds \x1b[31m: expected a number of seeds"),
    "misspelt experiment": (
        ["--experiment", "permutd"],
        "--experiment: unknown experiment 'permutd'; did you mean 'permuted'?",
    ),
    "empty experiment": (["--experiment", ""], "--experiment: unknown experiment ''"),
    "experiment is a path": (["--experiment", "../x"], "unknown experiment '../x'"),
    "experiment with an escape": (["--experiment", "\x1b[31m\n"], r"unknown experiment '\x1b[31m\n'"),
    "very long experiment": (["--experiment", "x" * 100_000], "unknown experiment 'xxx"),
    "misspelt optimizer": (["--optimizer", "sdg"], "--optimizer: unknown optimizer 'sdg'; did you mean 'sgd'?"),
    "registered optimizer that is not in the suite": (
        ["--optimizer", "lamb"],
        "did you mean 'adam'? (valid: adam, sgd); lamb=lamb adds the registered optimizer of this name",
    ),
    "optimizer is a target": (
        ["--optimizer", "./mine.py:SignMom"],
        "--optimizer ./mine.py:SignMom: expected the name of an optimizer or NAME=TARGET, as in "
        "SignMom=./mine.py:SignMom",
    ),
    "empty optimizer": (["--optimizer", ""], "expected the name of an optimizer"),
    "optimizer is a path": (["--optimizer", "../x"], "--optimizer ../x: expected the name of an optimizer"),
    "optimizer without target": (["--optimizer", "x="], "expected NAME=module:Class or NAME=./file.py:Class"),
    "target without name": (["--optimizer", "=torch.optim:SGD"], "expected a name of letters, digits, _, + and -"),
    "name with a dot": (["--optimizer", "a.b=torch.optim:SGD"], "expected a name of letters, digits, _, + and -"),
    "name with a line break": (
        ["--optimizer", "a\nb=torch.optim:SGD"],
        r"--optimizer a\nb=torch.optim:SGD: expected a name of letters",
    ),
    "unknown target": (["--optimizer", "x=sdg"], "--optimizer x=sdg: optimizers.x: unknown optimizer 'sdg'"),
    "target with an escape": (["--optimizer", "x=\x1b[31m"], r"unknown optimizer '\x1b[31m'"),
    "name of the run is a relative path": (
        ["--name", "../x"],
        "--name '../x': expected letters, digits and . _ + - only",
    ),
    "name of the run is an absolute path": (["--name", "/tmp/x"], "--name '/tmp/x': expected letters"),
    "name of the run is a dot": (["--name", "."], "--name '.': expected letters"),
    "name of the run is hidden": (["--name", ".x"], "--name '.x': expected letters"),
    "name of the run is empty": (["--name", ""], "--name '': expected letters"),
    "name of the run with a line break": (["--name", "a\n"], r"--name 'a\n': expected letters"),
    "name of the run with NUL": (["--name", "a\0"], r"--name 'a\x00': expected letters"),
    "name of the run with an escape": (["--name", "\x1b[2J"], r"--name '\x1b[2J': expected letters"),
    "name of the run is not ASCII": (["--name", "läuft"], "--name 'läuft': expected letters"),
    "name of the run is long": (["--name", "x" * 5000], "expected at most 200 characters, got 5000"),
    "unknown device": (["--device", "tpu"], "tpu"),
    "empty device": (["--device", ""], "--device: expected auto, cpu, cuda, cuda:N or mps, got nothing"),
    "negative device index": (["--device", "cuda:-1"], "cuda:-1"),
    "missing device": (["--device", "cuda:99"], "cuda:99"),
    "device with an escape": (["--device", "\x1b[31m"], r"\x1b[31m"),
    "jobs is text": (["--jobs", "many"], "--jobs"),
    "zero jobs": (["--jobs", "0"], "--jobs: expected a whole number of at least 1, got 0"),
    "jobs not a number": (["--jobs", "two"], "--jobs: expected a whole number of at least 1, got two"),
    "negative jobs": (["--jobs=-1"], "--jobs"),
    "resume an unknown run": (["--resume", "xyzzy"], "no run 'xyzzy' in runs"),
    "resume the latest of no runs": (["--resume", "latest"], "runs: no runs yet"),
    "resume an empty name": (["--resume", ""], "no run '' in runs"),
    "resume a file": (["--resume", "s.yaml"], "no run 's.yaml' in runs"),
    "resume a path outside": (["--resume", "../../.."], "no run '../../..' in runs"),
    "resume and name": (["--name", "x", "--resume", "latest"], "runs: no runs yet"),
    "runs directory is a file": (["--runs-dir", "s.yaml"], "s.yaml/good-"),
    "runs directory below a file": (["--runs-dir", "s.yaml/x"], "cannot write: Not a directory"),
    "force without resume": (["--force"], "--force: expected --resume as well"),
    "unknown option": (["--sedes", "3"], "unknown option '--sedes'; did you mean '--seeds'? (see optbench run --help)"),
    "unknown option with an escape": (["--\x1b[31m\n"], r"--\x1b[31m"),
    "an extra argument": (["more"], "run: expected no more arguments, got more (see optbench run --help)"),
    "an option without its value": (["--seeds"], "--seeds --quiet: expected a number of seeds"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_invalid_option_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, words = OPTIONS[name]
    device = [] if "--device" in options else ["--device", "cpu"]
    assert words in refusal(capsys, tmp_path, "run", "s.yaml", *device, *options, "--quiet")


COMMANDS: dict[str, tuple[list[str], str]] = {
    "no such command": (["rum"], "unknown command 'rum'; did you mean 'run'? (see optbench --help)"),
    "a command with an escape": (["\x1b[31m"], r"unknown command '\x1b[31m'"),
    "an option without its value": (
        ["run", "--seeds"],
        "--seeds: expected a value, got none (see optbench run --help)",
    ),
    "a flag with a value": (
        ["run", "s.yaml", "--quiet=yes"],
        "--quiet: expected no value, got one (see optbench run --help)",
    ),
    "a flag before the command with a value": (
        ["--version=3", "run"],
        "--version: expected no value, got one (see optbench --help)",
    ),
    "run without a suite": (["run"], "run: expected a SUITE"),
    "tune without a suite": (["tune"], "tune: expected a SUITE"),
    "unknown sampler": (["tune", "s.yaml", "--sampler", "gess"], "--sampler: unknown sampler 'gess'"),
    "output overwrites a file": (["tune", "s.yaml", "-o", "s.yaml"], "this file exists"),
    "output in a missing directory": (["tune", "s.yaml", "-o", "gone/x.yaml"], "there is no directory gone"),
    "list without a kind": (["list"], "list: expected KIND, got none (see optbench list --help)"),
    "unknown kind to list": (["list", "optimisers"], "did you mean 'optimizers'?"),
    "list with an escape": (["list", "\x1b[31m\n"], r"unknown kind '\x1b[31m\n'"),
    "file without a name": (
        ["check", "gone.py"],
        "gone.py: expected gone.py:NAME, a class or function",
    ),
    "misspelt target": (["check", "sdg"], "unknown name 'sdg'; did you mean 'sgd'?"),
    "target unlike any name": (["check", "xyzzy"], "unknown name 'xyzzy'; see optbench list optimizers|"),
    "target in a missing file": (["check", "./gone.py:Mine"], "there is no file gone.py"),
    "setting without a value": (["check", "sgd", "--set", "lr"], "--set lr: expected key.path"),
    "check a setting of a setting": (
        ["check", "sgd", "--set", "lr=1", "--set", "lr.a=1"],
        "expected lr to be a mapping, got 1",
    ),
    "report an unknown run": (["report", "xyzzy"], "no run 'xyzzy' in runs"),
    "unknown report format": (["report", "--format", "docx"], "--format: unknown format 'docx'"),
    "compare unknown runs": (["compare", "a", "b"], "no run 'a' in runs"),
    "compare an incomplete selection": (
        ["compare", "a:", "b"],
        "'a:': expected RUN, RUN:OPTIMIZER or RUN:OPTIMIZER/VARIANT",
    ),
    "invalid gate": (["compare", "a", "b", "--fail-on", "fame"], "--fail-on 'fame': expected METRIC:+SIZE"),
    "a gate with an escape": (["compare", "a", "b", "--fail-on", "\x1b[2J"], r"--fail-on '\x1b[2J': expected"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_invalid_command_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = COMMANDS[name]
    assert expected in refusal(capsys, tmp_path, *words)


def test_an_error_after_a_leading_debug_refers_to_the_help_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", "run", "--seeds"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "optbench: --seeds: expected a value, got none (see optbench run --help)"
