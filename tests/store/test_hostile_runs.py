"""Malicious run directories: nothing in them is executed, and nothing outside them is read or written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from optbench.cli import main
from optbench.errors import CONTROL
from optbench.optimizers.load import load_factory
from tests.refusals import refusal
from tests.sent_runs import change_record, change_rows, commands, copied, sent_run, swap

SECRET = "the secret of somebody else"


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sent_run(tmp_path_factory.mktemp("sent"))


@pytest.fixture
def run(sent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # so that files written by mistake are noticed
    return copied(sent, tmp_path)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "secret.txt").write_text(SECRET)
    save_file({"layer.weight": np.ones((2, 2))}, folder / "made.safetensors")
    return folder


def link(place: Path, target: Path | str) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def pipe(place: Path) -> None:
    place.unlink()
    os.mkfifo(place)


LINKS: dict[str, Callable[[Path, Path], object]] = {
    "link as record": lambda run, out: link(run / "run.json", out / "secret.txt"),
    "link as suite": lambda run, out: link(run / "suite.yaml", out / "secret.txt"),
    "relative link as suite": lambda run, out: link(run / "suite.yaml", os.path.relpath(out / "secret.txt", run)),
    "link as table": lambda run, out: link(run / "trials.parquet", out / "secret.txt"),
    "link as table of a figure": lambda run, out: link(run / "spectra.parquet", out / "secret.txt"),
    "link as checkpoint": lambda run, out: link(run / "checkpoints" / "made.safetensors", out / "made.safetensors"),
    "link as folder of checkpoints": lambda run, out: link(run / "checkpoints", out),
    "link as folder of parts": lambda run, out: link(run / "parts", out),
    "link as lock": lambda run, out: link(run / ".lock", out / "secret.txt"),
    "link as a table that will be written": lambda run, out: link(run / "curves.parquet", out / "secret.txt"),
    "through another link": lambda run, out: (
        link(run / "checkpoints" / "a", out),
        link(run / "b.yaml", "checkpoints/a/secret.txt"),
    ),
    "a cycle of links": lambda run, out: (link(run / "a.yaml", "b.yaml"), link(run / "b.yaml", "a.yaml")),
    "a pipe": lambda run, out: pipe(run / "metrics.parquet"),
}


@pytest.mark.parametrize("name", LINKS)
def test_links_out_of_a_run_are_not_followed(
    name: str, run: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LINKS[name](run, elsewhere)
    for command in (*commands(run).values(), ["report", run, "--format", "html"]):
        said = refusal(capsys, tmp_path, *command)
        assert SECRET not in said
        assert "expected a file or folder, got a link that" in said or "got a special file" in said
    assert main(["list", "runs"]) == 0
    assert SECRET not in "".join(capsys.readouterr())


def test_links_within_a_run_and_to_a_run_are_followed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "trials.parquet").rename(run / "all-trials.parquet")
    (run / "trials.parquet").symlink_to("all-trials.parquet")
    (tmp_path / "moved").symlink_to(run)
    assert main(["report", str(tmp_path / "moved"), "--format", "csv"]) == 0
    assert "average_accuracy" in capsys.readouterr().out


def framed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


GARBAGE: dict[str, bytes] = {
    "empty": b"",
    "pickle": b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x8c\x06system\x93\x94.",
    "zip, as torch.save writes": b"PK\x03\x04" + b"\0" * 100,
    "header larger than memory": (2**62).to_bytes(8, "little") + b"{}",
    "header beyond the file": (1000).to_bytes(8, "little") + b"{}",
    "header is no JSON": framed(b"[[[[[[[["),
    "tensor beyond the file": framed(b'{"a.weight":{"dtype":"F32","shape":[1000,1000],"data_offsets":[0,4000000]}}'),
    "tensor of a type that NumPy lacks": framed(b'{"a":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[0,2]}}')
    + b"\0\0",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_an_invalid_checkpoint_is_refused(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "checkpoints" / "made.safetensors"
    file.write_bytes(GARBAGE[name])
    said = refusal(capsys, tmp_path, "report", run, "--format", "html")
    assert said.startswith(f"{file}: unreadable: ")


def test_unusual_weights_in_a_checkpoint_are_drawn_or_left_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "checkpoints" / "made.safetensors"
    odd = {
        "nan": np.full((3, 3), np.nan),
        "infinite": np.full((3, 3), np.inf),
        "large": np.full((3, 3), 1e308),
        "small": np.full((3, 3), 5e-324),
        "complex": np.ones((3, 3), np.complex64),
        "whole": np.ones((3, 3), np.int8),
        "true": np.ones((3, 3), np.bool_),
        "empty": np.zeros((0, 3)),
    }
    for weights in (odd, {"nan": odd["nan"], "nothing": np.zeros((3, 3))}):
        save_file(weights, file)
        assert main(["report", str(run), "--format", "html"]) == 0
        assert "</html>" in capsys.readouterr().out


def test_code_named_by_a_run_is_not_executed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w').close()\nimport torch\nclass Evil(torch.optim.SGD): ...\n"
    for folder in (run, tmp_path):
        (folder / "evil.py").write_text(code)
    swap(run / "suite.yaml", "    target: sgd\n", "    target: ./evil.py:Evil\n")
    swap(run / "suite.yaml", "    target: adam\n", "    target: evil:Evil\n")
    for command in (
        ["report", run],
        ["report", run, "--format", "html"],
        ["compare", f"{run}:sgd", f"{run}:adam"],
        ["list", "runs"],
    ):
        assert main([str(word) for word in command]) == 0, command
    assert not mark.exists()
    capsys.readouterr()
    load_factory("./evil.py:Evil")
    assert mark.exists(), "otherwise the file would leave no trace when executed"


def test_escape_sequences_in_a_run_do_not_reach_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
    said = {"suite": evil, "status": evil, "created": evil, "finished": evil, "suite_hash": evil, "command": [evil]}
    change_record(run, lambda record: record.update(said))
    change_record(run, lambda record: record["provenance"].update(cpu=evil, device=evil, git={"commit": evil}))
    failed = {"status": "failed", "error_type": evil, "error_message": evil, "note": evil}
    change_rows(run, "trials", lambda rows: rows[0].update(failed))
    change_rows(run, "pairs", lambda rows: rows[0].update(note=evil, value=None))
    hostile = run.rename(run.with_name(f"a{evil}b"))
    for words in (
        ["report", str(hostile)],
        ["report", "latest", "--format", "csv"],
        ["report", "latest", "--format", "markdown"],
        ["report", "latest", "--format", "latex"],
        ["report", "latest", "--format", "json"],
        ["compare", "latest:sgd", "latest:adam"],
        ["compare", "latest:sgd", "latest:adam", "--format", "csv"],
        ["list", "runs"],
        ["run", "--resume", "latest", "--dry-run"],
        ["report", f"{hostile}x"],
        ["report", "nobody"],
        ["report", "latest", f"--{evil}"],
    ):
        main(words)
        printed = "".join(capsys.readouterr())
        assert printed
        assert not {char for char in printed if char in evil and CONTROL.search(char)}, words


def test_invalid_names_of_runs_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("../sent", "/", "", "nobody", "x" * 5000, "a\0b", "\x1b[31m", "a\nb", "sent/../../..", "run.json", ".")
    for name in names:
        for command in (
            ["report", name],
            ["run", "--resume", name],
            ["tune", "--resume", name],
            ["compare", name, "sent"],
        ):
            assert SECRET not in refusal(capsys, tmp_path, *command)
    for folder in ("nowhere", "x" * 5000, "runs/sent/run.json", "a\0b", "\x1b[31m"):
        assert SECRET not in refusal(capsys, tmp_path, "report", "--runs-dir", folder)
