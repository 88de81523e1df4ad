"""The package never executes what it reads and never builds code from text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import optbench
from optbench.engine.interim import CannotResume, loaded, saved

ROOT = Path(optbench.__file__).parent
MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
METHODS = {
    ("torch", "load"),
    ("torch", "save"),
    ("yaml", "load"),
    ("yaml", "load_all"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("pandas", "read_pickle"),
    ("pd", "read_pickle"),
    ("os", "system"),
    ("os", "popen"),
}
EXEMPT = {
    # For the exception that a pipe raises when the other process has died; nothing is unpickled here.
    ("execution/local.py", "pickle"),
    # Messages between the processes of a run on several machines; never files of a run directory.
    ("execution/parcels.py", "pickle"),
    # Annotations of users' kinds that are already imported, evaluated as by `typing.get_type_hints`.
    ("kinds.py", "eval"),
    # Objects passed to a run from Python reach its processes by value through pipes.
    ("targets/objects.py", "cloudpickle"),
    ("targets/objects.py", "cloudpickle.cloudpickle"),
    # Optimizer states, read with `weights_only=True`, which executes nothing (see below).
    ("engine/interim.py", "torch.load"),
    ("engine/interim.py", "torch.save"),
}


def found_in(tree: ast.AST) -> Iterator[str]:
    """Return the names of forbidden imports and calls in the source of a module."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                if module.split(".")[0] in MODULES:
                    yield module
                yield from (f"{module}.{name.name}" for name in names if (module, name.name) in METHODS)
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                yield name
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if (owner, name) in METHODS:
                yield f"{owner}.{name}"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="load"), keywords=keywords):
                if any(keyword.arg == "allow_pickle" for keyword in keywords):
                    yield "numpy.load"
            case ast.keyword(arg="shell", value=ast.Constant(value=True)):
                yield "shell=True"
            case _:
                pass


def test_the_package_executes_nothing_that_it_reads() -> None:
    found = {
        (file.relative_to(ROOT).as_posix(), name)
        for file in ROOT.rglob("*.py")
        for name in found_in(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert found <= EXEMPT, found - EXEMPT


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


@pytest.mark.parametrize("value", [Evil(), [{"state": Evil()}], print, Path("x"), Fraction(1, 2)])
def test_a_state_that_contains_code_is_refused(value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CannotResume, match=r"^torch\.load\(weights_only=True\) rejects the state"):
        loaded(saved(value), torch.device("cpu"))
    assert capsys.readouterr().out == ""


def test_states_are_loaded_as_data_only() -> None:
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert {word.arg: ast.unparse(word.value) for word in node.keywords}["weights_only"] == "True", file


def test_the_scan_finds_forbidden_code() -> None:
    for text in (
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import yaml\nload = yaml.load",
        "eval('1')",
        "exec('1')",
        "__import__('os')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import os\nos.system('ls')",
    ):
        assert list(found_in(ast.parse(text))), text
    assert not list(found_in(ast.parse("model.eval()\nre.compile('x')\njson.load(file)\nyaml.safe_load(text)")))


def test_plug_ins_are_imported_in_one_place_only() -> None:
    """Code named in a suite is loaded by `targets/` only, and never by packages that only read results."""
    importing = {
        file.relative_to(ROOT).as_posix()
        for file in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("exec_module", "import_module", "spec_from_file_location")
    }
    # The other modules import modules of optbench by literal names.
    assert importing == {
        "__init__.py",
        "checks/__init__.py",
        "cli/completion.py",
        "export/trackers.py",
        "kinds.py",
        "late.py",
        "targets/executing.py",
        "targets/modules.py",
        "data/vision.py",
        "metrics/metric.py",
        "report/formats/__init__.py",
    }
    for folder in ("report", "stats", "store", "suite", "plan"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert "optimizers.load" not in text, file
            for node in ast.walk(ast.parse(text)):
                if file == ROOT / "suite" / "load.py":
                    continue  # loads suites that will be run; suites of stored runs are read without loading code
                if isinstance(node, ast.ImportFrom) and node.module == "optbench.targets":
                    assert not {name.name for name in node.names} & {"load", "read_source", "source_hash"}, file
                assert not (isinstance(node, ast.ImportFrom) and "targets" in {name.name for name in node.names}), file
