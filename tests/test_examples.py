"""The notebooks of `examples/` run from a new kernel, and show what they say."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The interpreter of the tests, with nothing of the user's own configuration."""
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, os.fspath(tmp_path / variable))
    folder = tmp_path / "JUPYTER_DATA_DIR" / "kernels" / "here"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "here", "language": "python"}))
    return "here"


def test_the_notebook_about_an_optimizer_of_ones_own(kernel: str, tmp_path: Path) -> None:
    notebook = nbformat.read(EXAMPLES / "your_optimizer.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "stored without outputs"
    resources = {"metadata": {"path": os.fspath(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name=kernel, resources=resources).execute()
    run, values, plot, verdicts = (cell.outputs[-1].data for cell in notebook.cells if cell.get("outputs"))
    assert "complete, 21 trials (21 ok)" in run["text/plain"]
    assert "<table" in run["text/html"]
    assert "average_accuracy" in values["text/plain"]
    assert plot["image/png"]
    assert "forgetting" in verdicts["text/plain"]
    warned = [output for cell in notebook.cells for output in cell.get("outputs", ()) if output.get("name") == "stderr"]
    assert not warned
