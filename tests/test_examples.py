"""The files in `examples/` run and show the stated results; readers of tables agree."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from optbench.cli import main

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a kernel with the interpreter of the tests, isolated from the user's configuration."""
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, os.fspath(tmp_path / variable))
    folder = tmp_path / "JUPYTER_DATA_DIR" / "kernels" / "here"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "here", "language": "python"}))
    return "here"


def test_the_notebook_about_your_optimizer_runs(kernel: str, tmp_path: Path) -> None:
    notebook = nbformat.read(EXAMPLES / "your_optimizer.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook must be stored without outputs"
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


def test_moons_run_and_pandas_duckdb_and_polars_read_the_same_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--seeds", "2", "--set", "experiments.turning.protocol.max_epochs=1"]
    assert main(["run", os.fspath(EXAMPLES / "moons.yaml"), "--name", "smoke", "--quiet", *small]) == 0
    assert "separation ↑" in capsys.readouterr().out

    page = (EXAMPLES.parent / "docs" / "reading-tables.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    readers = {"pandas": blocks[0], "matrix": blocks[1], "duckdb": blocks[2]}
    readers |= {"polars": blocks[3], "summary": blocks[4]}
    ours = ("matrix", "summary")
    readers = {name: block for name, block in readers.items() if name in ours or importlib.util.find_spec(name)}
    # In a separate process, which ends the threads of these packages.
    script = "".join(
        f"{block}\nprint(result.to_dict('records') if {name!r} != 'polars' else result.to_dicts())\n"
        for name, block in readers.items()
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, matrix, *others, forgetting = [eval(line) for line in done.stdout.splitlines()]
    alike = [first, *others]
    for found in alike:
        assert [row["optimizer"] for row in found] == ["adam", "sgd"]
        assert [row["accuracy"] for row in found] == pytest.approx([row["accuracy"] for row in alike[0]])
    assert all(set(row) == {"adam", "sgd"} for row in forgetting)
    accuracy = pd.read_parquet("runs/smoke/accuracy.parquet")
    trial = accuracy[accuracy.trial == accuracy.trial.iloc[0]]
    assert len(matrix) == len(matrix[0]) + 1, "a row before training, and one after each task"
    assert all(matrix[row.after_task][row.task] == row.accuracy for row in trial.itertuples())
