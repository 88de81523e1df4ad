"""Ways to write "none" and a range of seeds: each is accepted, or the message gives the accepted form."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optbench.errors import SuiteError, UsageError
from optbench.selection import parse_seeds
from optbench.suite import load_suite
from optbench.suite.seed_ranges import instead_of_range
from tests.refusals import refusal

SUITE = """
name: forms
seeds: {seeds}
optimizers: {{sgd: {{target: sgd, lr: 0.1}}, adam: {{target: adam}}}}
experiments:
  one:
    tasks: {{kind: permuted}}
    models: {{m: {{kind: mlp}}}}
    protocol: {{early_stopping: {stopping}}}
    pairs: {pairs}
    twins: {twins}
"""


def written(folder: Path, seeds: str = "2", stopping: str = "null", pairs: str = "null", twins: str = "null") -> Path:
    path = folder / "suite.yaml"
    path.write_text(SUITE.format(seeds=seeds, stopping=stopping, pairs=pairs, twins=twins), encoding="utf-8")
    return path


@pytest.mark.parametrize("key", ["stopping", "pairs", "twins"])
def test_false_disables_a_setting_like_null(key: str, tmp_path: Path) -> None:
    assert load_suite(written(tmp_path, **{key: "false"})) == load_suite(written(tmp_path))


def test_false_disables_a_setting_on_the_command_line(tmp_path: Path) -> None:
    path = written(tmp_path, stopping="{patience: 2}")
    override = "experiments.one.protocol.early_stopping=false"
    assert load_suite(path, [override]).experiments["one"].protocol.early_stopping is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("off", "write true or false (or null for none), or quote it"),  # while `false` is accepted
        ("no", "write true or false (or null for none), or quote it"),
        ("'off'", "expected a mapping, or null, got 'off'"),
        ("none", "expected a mapping, or null, got 'none'"),
        ("0", "expected a mapping, or null, got 0"),
        ("true", "expected a mapping, or null, got true"),
        ("[]", "expected a mapping, or null, got an empty list"),
    ],
)
def test_other_words_for_none_are_refused_with_the_accepted_one(value: str, said: str, tmp_path: Path) -> None:
    for path in (written(tmp_path, stopping=value), written(tmp_path, pairs=value)):
        with pytest.raises(SuiteError) as refused:
            load_suite(path)
        assert said in str(refused.value)


def test_null_is_suggested_only_if_it_is_accepted(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace("{kind: permuted}", "permuted"))
    with pytest.raises(SuiteError, match=r"tasks: expected a mapping such as {kind: permuted}, got 'permuted'"):
        load_suite(path)


RANGES = {
    "0-4": ("5", "5"),
    "0..4": ("5", "5"),
    "0:4": ("5", "5"),
    "0 to 4": ("5", "5"),
    "0 - 99": ("100", "100"),
    "0-0": ("1", "1"),
    "3-5": ("[3, 4, 5]", "3,4,5"),
    "7-7": ("[7]", "7,"),
    "1000-1099": ("[1000, 1001, ..., 1099]", "1000,1001,...,1099"),
}


@pytest.mark.parametrize("text", RANGES)
def test_a_range_of_seeds_is_refused_with_the_accepted_form(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_suite, in_option = RANGES[text]
    path = written(tmp_path, seeds=f"'{text}'")
    said = refusal(capsys, tmp_path, "run", path, "--dry-run")
    assert said.startswith(f"{path}:3:8: seeds: expected a number of seeds or a list of seeds, got '{text}'; for the ")
    assert said.endswith(f" write {in_suite}")
    path = written(tmp_path)
    for command in ("run", "tune"):
        said = refusal(capsys, tmp_path, command, path, "--dry-run", "--seeds", text)
        assert said.startswith(f"--seeds {text}: expected a number of seeds or a list, got a range; for the seeds ")
        assert said.endswith(f" write {in_option}")


@given(st.integers(0, 40), st.integers(0, 11), st.sampled_from(["-", "..", "...", ":", " to ", " - ", "–"]))
@settings(max_examples=60, deadline=None)
def test_the_suggested_form_means_the_seeds_of_the_range(first: int, more: int, between: str) -> None:
    form = instead_of_range(f"{first}{between}{first + more}", brackets=False)
    assert form is not None
    assert parse_seeds(form.rpartition(" ")[2]) == tuple(range(first, first + more + 1))


@pytest.mark.parametrize("text", ["", "5", "0,1", "4-0", "a-b", "1-", "-1", "1-2-3", "1.5", "0-4,6"])
def test_other_texts_are_not_taken_for_ranges(text: str) -> None:
    assert instead_of_range(text, brackets=True) is None


@pytest.mark.parametrize("text", ["4-0", "1-2-3", "0-4,6"])
def test_invalid_seeds_that_are_not_ranges_get_no_suggestion(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a number of seeds \(at least 1\)"):
        parse_seeds(text)
    with pytest.raises(SuiteError, match="seeds: expected a list"):
        load_suite(written(tmp_path, seeds=f"'{text}'"))
