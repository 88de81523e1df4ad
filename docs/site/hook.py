"""Hooks that MkDocs calls while building the site. They add the generated pages and files from outside `docs/`.

Links in a page are relative to its path in the repository, so that they also work on GitHub. Here they are rewritten to
the paths of their targets in the site.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from docs.site import commands, formulas, metrics, optimizers, python, suite_file  # noqa: E402

GENERATED = {
    "reference/suite.md": suite_file.page,
    "reference/metrics.md": lambda: metrics.page(formulas.rendered),
    "reference/optimizers.md": optimizers.page,
    "reference/commands.md": commands.page,
    "reference/python.md": python.page,
}
COPIED = {"benchmarks/RESULTS.md": "speed.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
"""Pages from outside `docs/`: path in the repository -> path in the site."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add a section *More* to the navigation for pages that no other section lists."""
    named = str(config.nav)
    left = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f"'{path.name}'" not in named]
    if left:
        config.nav = [*(config.nav or []), {"More": left}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    formulas.check_used()
    for place, page in GENERATED.items():
        files.append(File.generated(config, place, content=page()))
    for source, place in places().items():
        path = ROOT / source
        if place == source:
            files.append(File(source, str(ROOT), config.site_dir, config.use_directory_urls))
        elif path.suffix == ".yaml":
            content = f"# Suite `{path.stem}`\n\n```yaml\n{path.read_text(encoding='utf-8')}```\n"
            files.append(File.generated(config, place, content=content))
        else:
            files.append(File.generated(config, place, content=path.read_text(encoding="utf-8")))
    return files


def places() -> dict[str, str]:
    """Return the files from outside `docs/` that the site includes: path in the repository -> path in the site."""
    suites = {f"suites/{path.name}": f"suites/{path.stem}.md" for path in (ROOT / "suites").glob("*.yaml")}
    examples = {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*") if path.is_file()}
    examples = {name for name in examples if "__pycache__" not in name}
    return COPIED | suites | {name: name for name in sorted(examples)}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    outside = places()
    source = next((source for source, place in outside.items() if place == here), f"docs/{here}")

    def rewritten(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = outside.get(path) or path.removeprefix("docs/")  # a link to README.md leads to docs/README.md
        return f"]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{anchor})"

    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", rewritten, markdown)
