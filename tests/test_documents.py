"""Documents refer to existing files, headings and suites, and generated pages of the site are complete."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from optbench.store.tables import ALL_TABLES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_LINES = 160
"""The largest number of lines of the README."""


def prose(page: Path) -> str:
    """Return the text of a page without code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Return the links of a page within the repository, as file and anchor."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_existing_targets(page: Path) -> None:
    for path, anchor in links(page):
        assert path.exists(), f"{page.name} links to {path}"
        if anchor:
            assert anchor in anchors(path), f"{page.name} links to {path.name}#{anchor}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = set(), {PAGES[0]}
    while new:
        reached |= new
        new = {path for page in new for path, _ in links(page) if path.suffix == ".md" and path in PAGES} - reached
    assert reached == set(PAGES)


def test_the_readme_is_short_and_starts_with_the_commands() -> None:
    lines = PAGES[0].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    commands = [i for i, line in enumerate(lines, 1) if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert max(commands) <= 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_suites_named_in_documents_exist(page: Path) -> None:
    shipped = {path.stem for path in (ROOT / "suites").glob("*.yaml")}
    named = re.findall(r"optbench (?:run|tune) ([a-z][a-z-]*)(?=[ `\n]|$)", page.read_text(encoding="utf-8"))
    assert set(named) - {"mine"} <= shipped


def test_the_reference_describes_every_key_and_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from docs.site import commands, optimizers, suite_file, tables

    for page in (suite_file.page(), tables.columns()):
        undescribed = [line for line in page.splitlines() if re.match(r"\| `.*\|  \|$", line)]
        assert not undescribed
    assert "| `clip_norm` | number above 0, or null | `null` |" in suite_file.page()
    assert "| `bits_per_byte` | double | yes |" in tables.columns()
    assert "### shampoo" in optimizers.page()
    assert "| `--fail-on METRIC:±SIZE[%]` |" in commands.page()


def test_the_page_on_the_run_directory_lists_the_columns_of_every_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from docs.site import tables

    text = tables.PAGE.read_text(encoding="utf-8")
    assert tables.updated(text) == text, "run python -m docs.site.tables"
    columns = text.partition(tables.BEGIN)[2]
    for name in (*ALL_TABLES, "summary", "pairs"):
        assert f"### {name}\n" in columns
        assert f"`{name}.parquet`" in text.partition(tables.BEGIN)[0]


def test_formulas_of_the_catalog_are_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("latex2mathml")
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from docs.site import formulas, metrics

    formulas.check_used()
    assert metrics.page(formulas.rendered).count("<math") > 60
    assert formulas.rendered("k / d, a < b").endswith("</math>, a &lt; b")
    assert len(formulas.unlisted()) <= 3  # new formulas without LaTeX so far


def test_sections_of_docstrings_are_indented() -> None:
    section = re.compile(r"^( *)(?:Args|Attributes|Raises|Returns|Yields):\n\1(?! |\n|\"\"\")", re.MULTILINE)
    sources = sorted((ROOT / "optbench").rglob("*.py"))
    assert len(sources) > 300
    assert [str(path) for path in sources if section.search(path.read_text(encoding="utf-8"))] == []
