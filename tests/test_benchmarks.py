"""The benchmarks run; their measurements need an idle machine and are not checked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from optbench.plan import Trial
from optbench.store.tables import Row
from tests.written_runs import rows_of, write_run

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def printed(name: str, *words: str) -> str:
    """Run a benchmark and return its output."""
    done = subprocess.run([sys.executable, BENCHMARKS / name, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("roots.py", ["--device", "cpuu"], "argument --device: expected cpu, cuda or cuda:N, got 'cpuu'"),
        ("roots.py", ["--members", "0"], "argument --members: expected a whole number of at least 1, got '0'"),
        ("on_device.py", ["--only", "rots"], "--only rots: expected one of machine, tests, smoke, throughput, roots, "),
        ("on_device.py", ["--only", "hangs"], "--only hangs: expected one of machine, tests, "),
    ],
)
def test_wrong_values_are_refused_in_one_line(name: str, words: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, BENCHMARKS / name, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"{name}: error: {said}")
    assert "Traceback" not in done.stderr


CLAIMS = """
name: claims
seeds: 6
optimizers: {sgd: {target: sgd, lr: 0.1}, adam: {target: adam}}
experiments:
  digits: {tasks: {kind: permuted, count: 2}, models: {mlp: {kind: mlp}}}
claims:
  up: {text: SGD ends | higher., experiment: digits, metric: average_accuracy, left: sgd, right: adam, expect: higher}
  down: {text: SGD ends lower., experiment: digits, metric: average_accuracy, left: sgd, right: adam, expect: lower}
"""


def test_verdicts_of_a_page_agree_with_its_run(tmp_path: Path) -> None:
    def rows(trial: Trial) -> list[Row]:
        value = 0.5 + (0.1 + 0.01 * trial.seed) * (trial.optimizer == "sgd")
        return rows_of("ok", [[0.1, 0.1], [value, 0.1], [value, value]], {}, init_hash=str(trial.seed))

    write_run(tmp_path, CLAIMS, rows, name="kept")
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- verdicts kept -->\nold\n<!-- end verdicts -->\nAfter.\n", encoding="utf-8")
    command = [sys.executable, BENCHMARKS / "verdicts.py", page, "--runs-dir", tmp_path / "runs"]

    def code(*more: str) -> int:
        return subprocess.run([*command, *more], capture_output=True, check=False).returncode

    assert (code("--check"), code(), code("--check")) == (1, 0, 0)
    text = page.read_text(encoding="utf-8")
    # R[2,1] and R[2,2] have the differences .1, .11, ... .15; six seeds of equal sign are enough for a verdict.
    assert "| SGD ends \\| higher. | supported | +0.125 [0.100, 0.150] |" in text
    assert "| SGD ends lower. | **contradicted** | +0.125 [0.100, 0.150] |" in text
    assert text.startswith("Before.\n<!-- verdicts kept -->\n\n| claim |")
    assert text.endswith("|\n\n<!-- end verdicts -->\nAfter.\n")
    page.write_text(text.replace("+0.125 [", "+0.126 ["), encoding="utf-8")
    assert code("--check") == 1
    page.write_text(text.replace("verdicts kept -->", "verdicts kept | detectable -->"), encoding="utf-8")
    assert code() == 0
    text = page.read_text(encoding="utf-8")
    assert "| claim | verdict | difference [95% interval] | could have shown |" in text
    assert "| SGD ends lower. | **contradicted** | +0.125 [0.100, 0.150] | 0.025 |" in text
    page.write_text(text.replace("| detectable", "| detectible"), encoding="utf-8")
    assert code() == 2


@pytest.mark.slow
def test_throughput_prints_a_row_for_each_way() -> None:
    out = printed("throughput.py", "--members", "2", "--rounds", "1", "--seconds", "0.01")
    for way in ("engine", "loop", "floor"):
        assert way in out


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "transformer", "unbiased-mlp", "batch-norm"])
def test_throughput_supports_other_models(model: str) -> None:
    words = ["--model", model, "--batch", "4", "--members", "4", "--rounds", "1", "--seconds", "0.01"]
    out = printed("throughput.py", *words, "--optimizers", "sgd")
    assert re.search(r"^sgd +4 .*\d\.\d\d \[", out, re.MULTILINE), out


@pytest.mark.slow
def test_a_profile_lists_operations() -> None:
    out = printed("throughput.py", "--members", "2", "--optimizers", "sgd", "--profile")
    assert "aten::mm" in out


@pytest.mark.slow
def test_ways_to_compute_roots_are_compared() -> None:
    out = printed("roots.py", "--members", "1", "--sides", "10", "--rounds", "1")
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("10 ")]
    assert [row[2] for row in rows] == ["eigh", "eigh", "newton", "newton", "qr"]
    assert all(float(row[-2]) < 1e-5 for row in rows[:-1])


@pytest.mark.slow
def test_time_and_memory_of_a_suite_are_measured() -> None:
    what = ["--experiment", "digit-pairs", "--optimizer", "sgd"]
    out = printed("suite.py", "smoke", "--seeds", "1", "--", *what)
    assert "1 ok" in out
    assert "MiB" in out
    shares = re.findall(
        r"^(?:start|training|scores and measures|data, .*|closing report) +[\d.]+ +([\d.]+)$", out, re.M
    )
    assert len(shares) == 5
    assert sum(map(float, shares)) == pytest.approx(100, abs=0.5)


@pytest.mark.slow
def test_a_sweep_is_compared_with_single_trials() -> None:
    out = printed("sweep.py", "--optimizers", "sgd", "--repeats", "1", "--steps", "2")
    rows = [line for line in out.splitlines() if line.startswith("sgd ")]
    assert len(rows) == 5
    assert sum("aim 60" in row for row in rows) == 1


@pytest.mark.slow
def test_the_cost_of_readings_is_given_relative_to_a_trial() -> None:
    out = printed("ranks.py", "--rounds", "1", "--model", "mlp-50")
    assert re.search(r"^extra cost of the readings: -?\d+\.\d\d \[.*\]% of a trial$", out, re.MULTILINE), out


def test_simulated_workers_are_kept_busy() -> None:
    text = printed("scale.py", "--trials", "120", "--jobs", "2", "--seconds", "5")
    assert text.startswith("120 trials of ")
    assert float(re.search(r"efficiency: ([\d.]+)%", text)[1]) > 90  # type: ignore[index]
    assert re.search(r"^peak memory: \d+ MiB$", text, re.MULTILINE)
