"""Resolving the name or path of a suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from optbench.errors import UsageError
from optbench.suite import resolve, resolve_suite_path, shipped_suites


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set up a working directory next to a folder of shipped suites, `smoke` and `permuted.mnist`."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    for name in ("smoke.yaml", "permuted.mnist.yml", "README.md"):
        (folder / name).write_text("")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(resolve, "_installed", lambda: resolve._named(folder.iterdir()))
    return folder


def test_shipped_suites_are_resolved_by_name(shipped: Path) -> None:
    files = {"permuted.mnist": shipped / "permuted.mnist.yml", "smoke": shipped / "smoke.yaml"}
    assert shipped_suites() == files
    assert list(shipped_suites()) == sorted(files)
    assert resolve_suite_path("smoke") == shipped / "smoke.yaml"


def test_an_existing_path_is_used_as_it_is(shipped: Path, tmp_path: Path) -> None:
    Path("mine").write_text("")
    assert resolve_suite_path("mine") == Path("mine")
    assert resolve_suite_path(str(shipped / "smoke.yaml")) == shipped / "smoke.yaml"


def test_a_folder_does_not_shadow_the_name_of_a_suite(shipped: Path) -> None:
    Path("smoke").mkdir()
    assert resolve_suite_path("smoke") == shipped / "smoke.yaml"
    assert resolve_suite_path("./smoke") == Path("smoke")


@pytest.mark.parametrize("name", ["smok", "smoke.yaml", "nowhere/smoke.yaml", "smoke.yml"])
def test_an_unknown_suite_is_refused_with_the_nearest_name(name: str, shipped: Path) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_suite_path(name)
    assert str(caught.value) == (
        f"no such file '{name}', and no shipped suite of that name; "
        "did you mean 'smoke'? (shipped: permuted.mnist, smoke)"
    )


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", "zzzzzz"])
def test_unusual_names_are_refused_without_a_suggestion(name: str, shipped: Path) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_suite_path(name)
    assert "did you mean" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_suites_of_this_checkout_are_found_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).resolve().parents[2] / "suites"
    monkeypatch.setattr(resolve, "_installed", dict)
    found = shipped_suites()
    assert found == {file.stem: file for file in folder.glob("*.yaml")}


def test_a_folder_named_suites_next_to_an_installed_package_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "foreign.yaml").write_text("")
    monkeypatch.setattr(resolve, "__file__", str(tmp_path / "optbench" / "suite" / "resolve.py"))
    monkeypatch.setattr(resolve, "_installed", dict)
    assert shipped_suites() == {}
