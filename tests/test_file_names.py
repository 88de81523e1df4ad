"""File names made from users' names are injective, readable and short, and files of a run never overwrite others."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from optbench.file_names import LONGEST, MARK, file_name, label
from optbench.plan import Cohort, Trial
from optbench.store import read_run
from optbench.store.files import write_text
from optbench.suite.fields import is_name
from tests.conftest import run_file
from tests.made_runs import SUITE, TASKS, made_run
from tests.reports import figures

# Ordinary characters and problematic ones: separators, case, and other alphabets
WORDS = st.text(st.sampled_from("ab01AB_.-+=,[]~@/\\: \nß中"), max_size=8) | st.text(max_size=200)
TUPLES = st.lists(WORDS, min_size=1, max_size=6).map(tuple)
NEAR = st.lists(
    st.sampled_from(["a", "b", "_", "__", "a_b", "a__b", "b_", "_a", "A", "a.b", ""]), min_size=1, max_size=5
)


@given(TUPLES | NEAR.map(tuple), TUPLES | NEAR.map(tuple), st.integers(1, 2))
@example(("a__b", "c"), ("a", "b__c"), 2)
@example(("a_b", "c"), ("a", "b_c"), 1)
@example(("a_b",), ("a", "b"), 1)
@example(("a_", "b"), ("a", "_b"), 1)
@example(("SGD",), ("sgd",), 2)
@example(("x" * 200,), ("x" * 201,), 2)
@example(("con",), ("CON",), 1)
def test_different_parts_have_different_names(a: tuple[str, ...], b: tuple[str, ...], underscores: int) -> None:
    one, other = file_name(a, underscores), file_name(b, underscores)
    assert (one.casefold() == other.casefold()) == (a == b)


@given(TUPLES, st.integers(1, 2))
def test_names_are_valid_on_every_file_system(parts: tuple[str, ...], underscores: int) -> None:
    name = file_name(parts, underscores)
    assert 0 < len(name.encode()) <= LONGEST
    assert set(name) <= set(string.ascii_letters + string.digits + "_.-+=,[]" + MARK)
    assert name[0] in string.ascii_letters + string.digits + "=,[]+"
    assert name.split(".")[0].lower() not in ("con", "nul", "aux", "prn", "com1", "lpt9")


@given(st.lists(st.text(string.ascii_letters + string.digits, min_size=1, max_size=80), min_size=1, max_size=6))
def test_every_part_is_recognisable_in_the_name(parts: list[str]) -> None:
    shown = file_name(parts).split(MARK)[0].split("__")
    assert len(shown) == len(parts)
    assert all(part.startswith(short) and short for part, short in zip(parts, shown, strict=True))


@pytest.mark.parametrize(
    ("parts", "underscores", "name"),
    [
        (
            ("small", "mlp-100", "sgd", "lr=0.1,momentum=0.9", "seed=0"),
            2,
            "small__mlp-100__sgd__lr=0.1,momentum=0.9__seed=0",
        ),
        (("split_mnist", "net", "sgd", "default", "seed=3"), 2, "split_mnist__net__sgd__default__seed=3"),
        (("a__b", "c"), 2, "a__b___c"),
        (("task-accuracy", "permuted-mnist", "mlp-100"), 1, "task-accuracy_permuted-mnist_mlp-100"),
        (("task-accuracy", "split_mnist", "mlp"), 1, "task-accuracy__split_mnist__mlp"),
    ],
)
def test_ordinary_names_are_unchanged(parts: tuple[str, ...], underscores: int, name: str) -> None:
    assert file_name(parts, underscores) == name


@given(TUPLES, st.integers(20, 200))
def test_labels_keep_within_their_length(parts: tuple[str, ...], longest: int) -> None:
    shown = label(parts, ".", longest)
    assert 0 < len(shown) <= max(longest, 1)
    assert shown[0] not in "-._"


def trial(experiment: str, model: str, optimizer: str, variant: str, seed: int) -> Trial:
    words = "/".join((experiment, model, optimizer, variant, f"seed={seed}"))
    return Trial(words, experiment, model, optimizer, variant, seed, "eval", "sgd", {})


@given(st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}", fullmatch=True), min_size=3, max_size=3))
@example(["x" * 80, "y" * 80, "z" * 80])
def test_a_cohort_with_long_names_has_a_valid_file_name(names: list[str]) -> None:
    assert all(map(is_name, names))
    one = trial(names[0], names[1], names[2], "default", 0)
    cohort = Cohort(*names, (one,))
    assert len(f".removed-{cohort.id}.10000") < 143
    assert cohort.id != Cohort(*names, (trial(*names, "default", 1),)).id  # type: ignore[call-arg]


def test_a_file_with_the_longest_possible_name_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / ("x" * 251 + ".txt")
    write_text(file, "text")
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(file, "text")]


HARSH = """
name: names
seeds: 1
optimizers: {sgd: {target: sgd, lr: [0.1, 0.2]}}
experiments:
  a__b: &one
    tasks: {kind: permuted, count: 1}
    models: {c: {kind: mlp, hidden: [4]}}
    protocol: {max_steps: 2, train_examples: 64, validation_examples: 32, test_examples: 32, batch_size: 32}
  a:
    <<: *one
    models: {b__c: {kind: mlp, hidden: [5]}, B__C: {kind: mlp, hidden: [6]}, LONG: {kind: mlp, hidden: [7]}}
""".replace("LONG", "m" * 80)


@pytest.mark.usefixtures("_train_here")
def test_no_trial_overwrites_the_weights_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = read_run(run_file(tmp_path, HARSH))
    table = run.table("trials")
    places = table["checkpoint"].to_pylist()
    assert len({place.lower() for place in places}) == len(places) == 8
    # All trials have different final weights, so each file must belong to its trial.
    weights = [b"".join(value.tobytes() for value in load_file(run.path / place).values()) for place in places]
    assert len(set(weights)) == 8
    for place, name in zip(places, table["trial"].to_pylist(), strict=True):
        assert trial_of(run.path / place) == name


def trial_of(checkpoint: Path) -> str:
    from safetensors import safe_open

    with safe_open(checkpoint, "np") as opened:
        return str(opened.metadata()["trial"])


def test_figures_with_similar_names_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SUITE.replace("  permuted:\n", "  a_b:\n").replace(
        "{narrow: {kind: mlp, hidden: [10]}, wide:", "{c: {kind: mlp, hidden: [10]}, C:"
    )
    text = text.replace("  pairs:\n", "  a:\n").replace("    models: {narrow:", "    models: {b_c:", 1)
    monkeypatch.setitem(TASKS, "a_b", 3)
    monkeypatch.setitem(TASKS, "a", 2)
    names = [figure.name for figure in figures([made_run(tmp_path, text)])]
    assert len({name.casefold() for name in names}) == len(names)
    assert {"task-accuracy__a_b__c", "task-accuracy__a__b_c"} <= set(names)
