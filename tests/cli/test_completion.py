"""Shell completion, through the environment variables that the functions of bash, zsh and fish set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.checks.recognise import NAMES
from optbench.cli import completion, main
from optbench.cli.listing import LISTS
from optbench.costing.sizes import SIZES
from optbench.export.trackers import TRACKERS
from optbench.metrics import METRICS
from optbench.optimizers.registry import OPTIMIZERS
from optbench.report.formats import FORMATS
from optbench.suite import shipped_suites
from optbench.suite.schema import Sampler
from tests.written_runs import rows_of, write_run

MINE = """
name: mine
seeds: 2
optimizers: {{mine: {{target: sgd}}, other: {{target: adam}}}}
experiments:
  {experiment}:
    tasks: {{kind: permuted, count: 3}}
    models: {{m: {{kind: mlp, hidden: [10]}}}}
"""
Ask = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for i, (place, run) in enumerate(((folder, "first"), (folder, "second"), (folder / "elsewhere", "third"))):
        path = write_run(place, MINE.format(experiment="there"), lambda trial: rows_of(), name=run)
        (place / f"{run}.yaml").unlink()
        os.utime(path / "run.json", (i + 1, i + 1))
    (folder / "mine.yaml").write_text(MINE.format(experiment="here"))
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a suite file, two runs of another suite, and a run in another folder."""
    folder = Path(shutil.copytree(written, tmp_path / "here"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Return a function that returns the completions in bash for a line with the cursor at its end."""

    def asked(line: str) -> list[str]:
        words = written_as_bash_does(line)
        monkeypatch.setenv("_OPTBENCH_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        with pytest.raises(SystemExit) as ended:
            main([])
        assert not ended.value.code
        out, err = capsys.readouterr()
        assert err == ""
        return [found for found in out.split("\n") if found]

    return asked


def written_as_bash_does(line: str) -> list[str]:
    """Split a line into words as bash does: `=` and `:` are separate words."""
    words = []
    for word in line.split(" "):
        parts = [part for part in word.replace("=", "\0=\0").replace(":", "\0:\0").split("\0") if part]
        words += parts or [""]
    return words


SUITES = [*shipped_suites(), "mine.yaml"]
LINES = {
    "optbench ": [
        "run",
        "tune",
        "fingerprint",
        "compare",
        "report",
        "cost",
        "merge",
        "export",
        "check",
        "init",
        "list",
    ],
    "optbench co": ["compare", "cost"],
    "optbench cost shampoo-5": ["shampoo-512", "shampoo-512-every-20"],
    "optbench cost --size ": list(SIZES),
    "optbench run --exp": ["--experiment"],
    "optbench run ": SUITES,
    "optbench tune s": [name for name in SUITES if name.startswith("s")],
    "optbench run m": ["mine.yaml"],
    "optbench run ./": [],
    "optbench run mine.yaml --experiment ": ["here"],
    "optbench run mine.yaml --model ": ["m"],
    "optbench run continual --model mlp-2": ["mlp-200"],
    "optbench run mine.yaml --optimizer ": ["mine", "other"],
    "optbench run smoke --optimizer sh": ["shampoo"],
    "optbench run smoke --optimizer new=shamp": ["shampoo"],
    "optbench run smoke --optimizer=new=shamp": ["shampoo"],
    "optbench run smoke --optimizer new=": list(OPTIMIZERS),
    "optbench run no-such.yaml --experiment ": [],
    "optbench run --resume ": ["latest", "second", "first"],
    "optbench run --runs-dir elsewhere/runs --resume ": ["latest", "third"],
    "optbench run --runs-dir nowhere --resume ": ["latest"],
    "optbench report sec": ["second"],
    "optbench report second f": ["first"],
    "optbench compare first:": ["mine", "other"],
    "optbench compare first:mine second:o": ["other"],
    "optbench compare latest:m": ["mine"],
    "optbench compare first:mine first:other --experiment ": ["there"],
    "optbench compare no-such:": [],
    "optbench compare first second --metric forg": ["forgetting"],
    "optbench report --format=ht": ["html"],
    "optbench report --format ": list(FORMATS),
    "optbench run --device c": ["cpu", "cuda"],
    "optbench tune --sampler ": list(typing.get_args(Sampler)),
    "optbench export sec": ["second"],
    "optbench export second --to ": list(TRACKERS),
    "optbench export second --to tensorboard ": [],
    "optbench check ": [name for names in NAMES.values() for name in names],
    "optbench check cnn": ["cnn"],
    "optbench check fashion": ["fashion-mnist"],
    "optbench check class-inc": ["class-incremental"],
    "optbench check sam_sh": ["sam_sharpness"],
    "optbench list ": list(LISTS),
}


@pytest.mark.parametrize("line", LINES)
def test_completions_for_bash_are_as_expected(line: str, ask: Ask, folder: Path) -> None:
    assert ask(line) == LINES[line]


def test_names_copied_into_the_completion_agree_with_their_sources() -> None:
    assert typing.get_args(Sampler) == completion.SAMPLERS
    assert list(completion.FORMATS) == list(FORMATS)
    assert list(completion.KINDS) == list(LISTS)
    assert list(completion.SIZES) == list(SIZES)
    assert list(completion.TRACKERS) == list(TRACKERS)


@pytest.mark.parametrize(
    "content", ["", "- a list", "optimizers: [1, 2]", "optimizers: {a", "optimizers: !!python/none {}", "\0", "\xff"]
)
def test_a_broken_suite_gives_no_completions(content: str, ask: Ask, folder: Path) -> None:
    (folder / "mine.yaml").write_bytes(content.encode("latin-1"))
    assert ask("optbench run mine.yaml --optimizer ") == []
    (folder / "runs" / "second" / "suite.yaml").write_bytes(content.encode("latin-1"))
    assert ask("optbench compare second:") == []


def test_runs_below_the_home_directory_are_completed(ask: Ask, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "elsewhere"))
    assert ask("optbench run --runs-dir ~/runs --resume th") == ["third"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_get_the_same_completions(
    shell: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_OPTBENCH_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    for line, offered in {
        "optbench run s": ["shampoo", "shortcuts", "smoke", "sparsity"],
        "optbench run smoke --optimizer new=shamp": ["new=shampoo"],
        "optbench check lio": ["lion"],
        "optbench run --runs-dir elsewhere/runs --resume ": ["latest", "third"],
        "optbench compare first:o": ["first:other"],
    }.items():
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        with pytest.raises(SystemExit):
            main([])
        out, err = capsys.readouterr()
        assert err == ""
        for name in offered:
            # zsh separates a value from its description by a colon.
            assert (name.replace(":", "\\\\:") if shell == "zsh" else name) in out
        assert out.count("\n") == len(offered)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_printed_script_works_in_bash(folder: Path) -> None:
    (folder / "bin").mkdir()
    command = folder / "bin" / "optbench"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m optbench "$@"\n')
    command.chmod(0o755)
    script = """
    eval "$(optbench --show-completion)" || exit 1
    for words in "optbench run smo" "optbench run smoke --optimizer new = shamp" "optbench compare first : mi"; do
        IFS=' ' read -ra COMP_WORDS <<< "$words"; COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
        _optbench_completion optbench; echo "${COMPREPLY[@]}"
    done
    """
    environment = {**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n")[:3], done.stderr) == (0, ["smoke", "shampoo", "mine"], "")


@pytest.mark.parametrize("line", ["optbench run ", "optbench check ", "optbench compare first:", "optbench run --res"])
def test_completion_does_not_import_heavy_packages(line: str, folder: Path) -> None:
    words = written_as_bash_does(line)
    code = """
import sys
from optbench.cli import main
try:
    main([])
finally:
    heavy = {"torch", "numpy", "pyarrow", "pandas", "scipy", "matplotlib", "rich"} & sys.modules.keys()
    if heavy:
        print(heavy, file=sys.stderr)
"""
    variables = {
        "_OPTBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    environment = {**os.environ, **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_installing_completion_keeps_the_users_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The shell is detected from the parent processes.
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_text("# mine\n")
    command = f'"{sys.executable}" -m optbench --install-completion; echo $?'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("0"), done.stdout + done.stderr
    assert (tmp_path / ".bashrc").read_text().startswith("# mine\n")
    installed = [path for path in tmp_path.rglob("*") if path.is_file() and "optbench" in path.name]
    assert len(installed) == 1
    assert "_OPTBENCH_COMPLETE=complete_bash" in installed[0].read_text()


def test_completed_metrics_are_those_of_the_catalog(ask: Ask) -> None:
    assert ask("optbench compare a b --metric ") == list(METRICS)
