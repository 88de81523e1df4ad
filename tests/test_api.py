"""The Python interface: `import optbench`."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import optbench


def test_every_public_name_is_defined_once_and_can_be_imported() -> None:
    assert sorted(optbench.__all__) == sorted([*optbench._PUBLIC, "__version__"])
    for name, module in optbench._PUBLIC.items():
        assert getattr(optbench, name) is getattr(sys.modules[module], name)
    assert set(optbench.__all__) <= set(dir(optbench))
    assert optbench.__version__ == importlib.metadata.version("optbench")


def test_an_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trani'"):
        _ = optbench.trani  # type: ignore[attr-defined]


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "optbench", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"optbench {optbench.__version__}\n"


def test_importing_the_package_imports_no_submodules() -> None:
    code = "import sys; before = set(sys.modules); import optbench; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not [name for name in done.stdout.split() if name.startswith("optbench.")], done
