"""Shell completion for the names of suites, runs, optimizers and so on. This module imports nothing slow.

If a function returns no names, the shell completes file names.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

DEVICES = ("auto", "cpu", "cuda", "mps")
PLACES = ("local", "ray", "ray:", "slurm")
SAMPLERS = ("grid", "random", "tpe")
SIZES = ("tiny", "small", "bert-base")
FORMATS = ("terminal", "markdown", "html", "latex", "csv", "json")
TRACKERS = ("tensorboard", "wandb")
KINDS = ("optimizers", "datasets", "tasks", "models", "metrics", "suites", "runs")
"""The kinds that `list` accepts. This and the constants above repeat definitions that are too slow to import here."""

_SEPARATORS = re.compile(r"[=:]+")


@contextlib.contextmanager
def words_of_bash() -> Iterator[None]:
    """Undo bash's splitting of words at `=` and `:` during completion.

    In `--optimizer mine=ad`, bash completes only `ad`. The parts of a word are joined in the environment variables that
    Typer reads, and each completion is shortened to the part that bash completes.
    """
    text, position = os.environ.get("COMP_WORDS", ""), os.environ.get("COMP_CWORD", "")
    if os.environ.get("_OPTBENCH_COMPLETE") != "complete_bash" or not position.isdecimal():
        yield
        return
    between = "\n" if "\n" in text else " "  # Typer's shell function separates the words by line breaks
    # text to the right of the cursor does not belong to the word
    words = text.split(between)[: int(position) + 1]
    words += [""] * (int(position) + 1 - len(words))
    joined: list[str] = []
    glued = False
    for word in words:
        separates = _SEPARATORS.fullmatch(word) is not None
        if joined and (glued or separates):
            joined[-1] += word
        else:
            joined.append(word)
        glued = separates
    os.environ.update(COMP_WORDS=between.join(joined), COMP_CWORD=str(len(joined) - 1))
    # a completion repeats the complete word, or only the option's value, as for `--optimizer=mine=ad`
    ends = [0, *(found.end() for found in _SEPARATORS.finditer(joined[-1]))]
    left = [joined[-1][start : ends[-1]] for start in ends[:-1]]
    written = io.StringIO()
    try:
        with contextlib.redirect_stdout(written):
            yield
    finally:
        for line in written.getvalue().splitlines():
            cut = next((text for text in left if line.startswith(text)), "")
            sys.stdout.write(f"{line.removeprefix(cut)}\n")


def suites(incomplete: str) -> list[str]:
    """Complete shipped suites and suite files in the working directory."""

    def found() -> Iterable[str]:
        from optbench.suite.resolve import shipped_suites

        return *shipped_suites(), *(file.name for file in sorted(Path.cwd().glob("*.y*ml")))

    return _starting(incomplete, found)


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Complete ids of runs in `--runs-dir`, and `latest`."""
    return _starting(incomplete, lambda: ("latest", *_ids(context)))


def reported(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the arguments of `report`: `latest`, ids of runs, and names of `cost` result files."""

    def found() -> Iterable[str]:
        return "latest", *_ids(context), *(file.name for file in sorted(_runs_dir(context).glob("cost-*.json")))

    return _starting(incomplete, found)


def run_and_optimizer(context: typer.Context, incomplete: str) -> list[str]:
    """Complete a run or, after a colon, one of its optimizers."""
    run, colon, _ = incomplete.rpartition(":")
    if not colon:
        return runs(context, incomplete)
    return _starting(incomplete, lambda: (f"{run}:{name}" for name in _outline(_run(context, run), "optimizers")))


def fingerprinted(context: typer.Context, incomplete: str) -> list[str]:
    """Complete optimizers whose fingerprint can be drawn: registered optimizers, and optimizers in runs."""
    return [*registered(incomplete), *run_and_optimizer(context, incomplete)]


def _known(module: str, table: str) -> Callable[[str], list[str]]:
    """Return a function that imports `module` when called, and completes the names in the module's `table`."""

    def offered(incomplete: str) -> list[str]:
        return _starting(incomplete, lambda: getattr(importlib.import_module(module), table))

    return offered


contenders = _known("optbench.costing.contenders", "CONTENDERS")
registered = _known("optbench.optimizers.registry", "OPTIMIZERS")
metrics = _known("optbench.metrics", "METRICS")


def known_targets(incomplete: str) -> list[str]:
    """Complete registered optimizers, models, datasets, task sequences and metrics."""

    def found() -> Iterable[str]:
        from optbench.checks.recognise import NAMES

        return (name for names in NAMES.values() for name in names)

    return _starting(incomplete, found)


def optimizers(context: typer.Context, incomplete: str) -> list[str]:
    """Complete optimizers of the suite or, after `NAME=`, registered ones."""
    name, equals, target = incomplete.partition("=")
    if equals:
        return [f"{name}={found}" for found in registered(target)]
    return _starting(incomplete, lambda: _outline(_suite(context), "optimizers"))


def experiments(context: typer.Context, incomplete: str) -> list[str]:
    """Complete experiments of the suite, or of the compared runs."""

    def found() -> Iterable[str]:
        sides = [_run(context, str(text).partition(":")[0]) for text in _given(context, "run_a", "run_b")]
        return dict.fromkeys(name for file in [_suite(context), *sides] for name in _outline(file, "experiments"))

    return _starting(incomplete, found)


def models(context: typer.Context, incomplete: str) -> list[str]:
    """Complete models of the suite's experiments."""

    def found() -> Iterable[str]:
        described = _outline(_suite(context), "experiments").values()
        return dict.fromkeys(
            name for one in described if isinstance(one, dict) for name in one.get("models") or () if name
        )

    return _starting(incomplete, found)


def one_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a function that completes the values of an option from a fixed list."""

    def offered(incomplete: str) -> list[str]:
        return _starting(incomplete, lambda: names)

    return offered


def _starting(incomplete: str, find: Callable[[], Iterable[object]]) -> list[str]:
    """Return the names that start with `incomplete`; if an error occurs, return none, since no message can be shown."""
    try:
        return [str(name) for name in find() if str(name).startswith(incomplete)]
    except Exception:
        return []


def _given(context: typer.Context, *names: str) -> list[Any]:
    """Return the values given so far on the command line for the named parameters."""
    arguments = [param.name for param in context.command.params if param.param_type_name == "argument"]
    # arguments are not parsed if the option being completed has no value yet
    unread = dict(zip(arguments, context.args, strict=False))
    values = [context.params.get(name) or unread.get(name) for name in names]
    return [value for value in values if value]


def _suite(context: typer.Context) -> Path | None:
    from optbench.suite.resolve import resolve_suite_path

    return next((resolve_suite_path(str(suite)) for suite in _given(context, "suite")), None)


def _runs_dir(context: typer.Context) -> Path:
    return Path(next(iter(_given(context, "runs_dir")), "runs")).expanduser()


def _ids(context: typer.Context) -> list[str]:
    """Return the ids of the runs in `--runs-dir`, newest first."""
    found = list(_runs_dir(context).glob("[!.]*/run.json"))
    return [file.parent.name for file in sorted(found, key=lambda file: file.stat().st_mtime, reverse=True)]


def _run(context: typer.Context, run: str) -> Path | None:
    """Return the path of a run's suite file; None if there is no such run."""
    names = [*_ids(context)[:1]] if run == "latest" else [run]
    places = [place for name in names for place in (Path(name).expanduser(), _runs_dir(context) / name)]
    return next((place / "suite.yaml" for place in places if (place / "run.json").is_file()), None)


def _outline(file: Path | None, key: str) -> Mapping[str, Any]:
    """Return the mapping under `key` in a suite file, without validation; empty if there is no file or mapping."""
    if file is None:
        return {}
    from optbench.suite.extends import read_document

    found = read_document(file).value.get(key)
    return found if isinstance(found, dict) else {}
