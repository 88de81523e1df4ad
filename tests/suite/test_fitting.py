"""Incompatible parts of a suite are refused with their place, before any data is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from optbench.suite import load_suite
from tests.refusals import refusal

SUITE = """
name: fitting
seeds: 1
optimizers: {{sgd: {{target: sgd, lr: 0.1}}}}
experiments:
  one:
    dataset: {dataset}
    tasks: {tasks}
    models: {{net: {model}}}
    protocol: {protocol}
"""
TEXT = "{kind: text-domains}"
MLP, OWN = "{kind: mlp}", '{kind: "./own_models.py:NextToken"}'


def written(folder: Path, dataset: str, tasks: str, model: str = OWN, protocol: str = "{}") -> Path:
    shutil.copy(Path(__file__).parents[1] / "own_models.py", folder)
    path = folder / "suite.yaml"
    path.write_text(SUITE.format(dataset=dataset, tasks=tasks, model=model, protocol=protocol), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("parts", "place", "message"),
    [
        (
            ("mnist", "{kind: domains}", MLP),
            "8:19",
            "tasks.kind: expected a task sequence for the images of mnist, got 'domains'",
        ),
        (
            (TEXT, "{kind: permuted}"),
            "8:19",
            "tasks.kind: expected a task sequence for the text of text-domains, got 'permuted'",
        ),
        (
            (TEXT, "{kind: domains}", MLP),
            "9:26",
            "models.net.kind: expected a model for the text of text-domains, got 'mlp'",
        ),
        (
            (TEXT, "{kind: domains, order: [code, scriptures]}"),
            "8:42",
            "tasks.order.1: unknown domain 'scriptures'; did you mean 'scripture'?",
        ),
        (
            (TEXT, "{kind: permuted-vocabulary, domain: proze}"),
            "8:48",
            "tasks.domain: unknown domain 'proze'; did you mean 'prose'?",
        ),
        (
            (TEXT, "{kind: domains}", OWN, "{train_examples: 100}"),
            "10:32",
            "protocol.train_examples: expected none for text, because the task sequence limits the training text "
            "(tokens_per_task)",
        ),
        (
            ("{kind: text-domains, vocabulary: 300}", "{kind: domains}"),
            "7:21",
            "dataset.kind: vocabulary: expected tokens: bpe, got tokens: bytes, whose vocabulary is fixed",
        ),
        (
            ("{kind: text-domain}", "{kind: domains}"),
            None,
            "unknown dataset 'text-domain'; did you mean 'text-domains'",
        ),
        (
            (TEXT, "{kind: domains, order: shufled}"),
            "8:35",
            "tasks.order: expected fixed, shuffled or a list of domains, got 'shufled'; did you mean 'shuffled'?",
        ),
        (("{kind: text-domains, contxt: 8}", "{kind: domains}"), None, "did you mean 'context'"),
        (
            ("{kind: text-files, files: {a: none.txt}}", "{kind: domains}"),
            "7:44",
            "dataset.files.a: none.txt: there is no file none.txt, neither in",
        ),
        (
            ("{kind: text-files, files: {a: suite.yaml}}", "{kind: domains}"),
            "7:44",
            "dataset.files.a: expected at least 2580 bytes, so that the last 5% contain a window of context 128, got ",
        ),
        (("{kind: text-files, files: {}}", "{kind: domains}"), None, "dataset.files: "),
    ],
)
def test_incompatible_parts_are_refused_in_one_line(
    parts: tuple[str, ...], place: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, *parts)
    said = refusal(capsys, tmp_path, "run", path, "--dry-run")
    assert (f"{path}:{place}: experiments.one.{message}" if place else message) in said


def test_the_vocabulary_of_a_suite_is_known_before_loading(tmp_path: Path) -> None:
    def settings(dataset: str) -> dict[str, object]:
        return load_suite(written(tmp_path, dataset, "{kind: domains}")).experiments["one"].dataset.settings

    assert settings("text-domains") == {"tokens": "bytes", "context": 128}
    assert settings("{kind: text-domains, tokens: bpe}") == {"tokens": "bpe", "vocabulary": 512, "context": 128}
