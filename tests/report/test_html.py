"""The HTML report: one valid file that fetches nothing and is legible at any width, in light and dark mode."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given

from optbench.plan import Trial
from optbench.report.document import Cell, Column, Heading, Illustration, Paragraph, Part, Report, Table
from optbench.report.formats import html as page
from optbench.report.layout import one_line
from optbench.report.run_report import run_report
from optbench.report.summary import summarise
from tests.report.test_formats import NASTY, PANEL, blocks, sample, table_of, texts
from tests.written_runs import results_of, rows_of, write_run

VOID = {"meta", "link", "br"}


class Elements(HTMLParser):
    """Parse a page into elements with attributes and text; fail if tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {[tag for tag, *_ in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"duplicate attribute: {tag} {attrs}"
        if tag in VOID:
            self.found.append((tag, dict(attrs), ""))
        else:
            self.open.append((tag, dict(attrs), []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert any(name == "svg" for name, *_ in self.open), f"<{tag}/> is not HTML"
        self.found.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        name, attributes, text = self.open.pop()
        assert name == tag, f"<{name}> closed by </{tag}>"
        self.found.append((name, attributes, "".join(text)))

    def handle_data(self, data: str) -> None:
        for _, _, text in self.open:
            text.append(data)

    def texts(self, *tags: str) -> list[str]:
        return [text for tag, _, text in self.found if tag in tags]


@cache
def rendered() -> str:
    return page.render(sample())


def test_the_page_is_valid_and_complete() -> None:
    elements = Elements(rendered())
    tags = [tag for tag, *_ in elements.found]
    assert tags.count("html") == tags.count("main") == tags.count("h1") == tags.count("style") == 1
    assert elements.texts("h1", "title") == [sample().title] * 2
    assert elements.texts("h2", "h3") == [
        "permuted-mnist, mlp-100",
        "The solution: |w| < .01 rms & _rank_ *",
        "Claims",
        "How to repeat it",
    ]
    assert elements.texts("caption") == [table.caption for table in blocks(sample(), Table)]
    cells = [cell.text for table in blocks(sample(), Table) for row in table.rows for cell in row]
    body = [text for tag, attributes, text in elements.found if tag == "td" or attributes.get("scope") == "row"]
    assert body == [one_line(cell) for cell in cells]
    assert set(elements.texts("li")) >= {one_line(f"{name}: undefined in some of its trials.") for name in NASTY}
    only = [
        block.block.text for block in sample().blocks if isinstance(block, Part) and isinstance(block.block, Paragraph)
    ]
    assert [text in elements.texts("p") for text in only] == [True, False]
    assert elements.texts("summary") == ["Accuracy <matrices>"]
    assert elements.texts("code")[0] == "optbench report\n\\end{verbatim} ±"


def test_a_page_has_a_table_of_contents_that_links_to_its_headings() -> None:
    elements = Elements(rendered())
    targets = {a["id"]: text for tag, a, text in elements.found if tag in ("h2", "h3") and "id" in a}
    links = {(a["href"] or "").removeprefix("#"): text for tag, a, text in elements.found if tag == "a"}
    assert links == targets
    assert len(links) == 4
    few = Elements(page.render(Report("Short", (Heading("One"), Heading("Two")))))
    assert not few.texts("nav", "a")


def test_a_page_on_a_run_starts_with_claims_and_the_primary_comparison(tmp_path: Path) -> None:
    suite = CLAIMED.format(seeds=7)
    path = write_run(tmp_path, suite, lambda trial: rows_of("ok", _better(trial), {}, init_hash=str(trial.seed)))
    found = Elements(page.render(run_report(summarise([results_of(path)], ()))))
    headings = found.texts("h2")
    assert headings[:3] == ["Claims of claimed", "Primary comparison", "Results"]
    assert "not comparable" not in (texts := found.texts("td"))
    assert "better +0.100" in texts
    few = write_run(tmp_path / "few", CLAIMED.format(seeds=5), lambda trial: rows_of("ok", _better(trial), {}))
    assert "Primary comparison" not in page.render(run_report(summarise([results_of(few)], ())))


CLAIMED = """
name: claimed
seeds: {seeds}
optimizers: {{sgd: {{target: sgd, lr: 0.1}}, adam: {{target: adam}}, rates: {{target: adam, lr: [0.1, 0.2]}}}}
experiments:
  digits: {{tasks: {{kind: permuted, count: 2}}, models: {{mlp: {{kind: mlp}}}}, primary: [average_accuracy]}}
claims:
  up: {{experiment: digits, metric: average_accuracy, left: adam, right: sgd, expect: higher}}
"""


def _better(trial: Trial) -> list[list[float]]:
    value = 0.5 + 0.01 * trial.seed + 0.1 * (trial.optimizer == "adam")
    return [[0.1, 0.1], [value, 0.1], [value, value]]


def test_every_table_has_row_and_column_headers() -> None:
    elements = Elements(rendered())
    for table in elements.texts("table"):
        assert table
    scopes = [attributes.get("scope") for tag, attributes, _ in elements.found if tag == "th"]
    tables = blocks(sample(), Table)
    assert scopes.count("col") == sum(len(table.columns) for table in tables)
    assert scopes.count("row") == sum(len(table.rows) * table.keys for table in tables)
    assert len(scopes) == scopes.count("col") + scopes.count("row")


def test_a_page_fetches_nothing_and_executes_nothing() -> None:
    elements = Elements(rendered())
    for tag, attributes, _ in elements.found:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base", "img")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "data"):
                assert value is not None
                assert value.startswith(("#", "data:")), (tag, name, value)
    styles = "".join(elements.texts("style"))
    inline = " ".join(value or "" for _, attributes, _ in elements.found for value in attributes.values())
    assert "@import" not in styles
    assert all(url.strip("\"'").startswith("#") for url in re.findall(r"url\(([^)]*)\)", styles + inline))
    policy = next(a["content"] for tag, a, _ in elements.found if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@given(texts)
def test_any_name_is_shown_as_text(name: str) -> None:
    document = table_of([name] * 3, "warning")
    elements = Elements(page.render(Report(name, (*document.blocks, Paragraph(name, "warning")))))
    line = one_line(name)
    assert elements.texts("h1", "caption", "td", "p") == [line] * 6
    assert next(a["aria-label"] for tag, a, _ in elements.found if a.get("role") == "region") == line


def test_figures_are_described_and_omitted_without_panels() -> None:
    elements = Elements(rendered())
    images = [attributes["aria-label"] for _, attributes, _ in elements.found if attributes.get("role") == "img"]
    assert images == ['Shampoo lies above SGD & AdamW at each of the "three" widths.']
    assert elements.texts("figcaption") == [
        "Final accuracy by width. Every dot is a seed; the line is the median. 95% intervals, n = 10."
    ]


def test_panels_are_embedded_unchanged() -> None:
    figure = next(figure for figure in blocks(sample(), Illustration) if figure.panels)
    assert len(figure.panels) == 2
    assert all(f'<div class="panel">\n{svg}\n</div>' in rendered() for svg in figure.panels)


def palettes() -> dict[str, dict[str, str]]:
    style = resources.files("optbench.report").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)[:2]
    )
    assert light.keys() == dark.keys()
    return {"light": light, "dark": dark}


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2.1, from 1 to 21."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_agrees_with_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "paper"),
    [
        *((ink, "paper") for ink in ("ink", "quiet", "warning", "good", "bad", "link")),
        ("warning", "warning-paper"),
        ("ink", "band"),
    ],
)
def test_every_text_has_contrast(scheme: str, ink: str, paper: str) -> None:
    colours = palettes()[scheme]
    assert contrast(colours[ink], colours[paper]) >= 4.5


MEASURE = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">
<body style="margin:0">{frames}<pre id="measured"></pre><script>
const box = (element) => element.getBoundingClientRect();
function measure(frame) {{
  const page = frame.contentDocument, root = page.documentElement;
  const first = page.querySelector(".wide tbody th"), scroller = page.querySelector(".wide");
  if (scroller) scroller.scrollLeft = 200;
  const panels = [...page.querySelectorAll(".panel")].map(box);
  return {{
    scroll: root.scrollWidth, client: root.clientWidth,
    dark: frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches,
    paper: getComputedStyle(page.body).backgroundColor,
    requests: frame.contentWindow.performance.getEntriesByType("resource").length,
    scrolled: scroller ? scroller.scrollLeft : 0, stuck: scroller ? box(first).left - box(scroller).left : null,
    folded: [...page.querySelectorAll("details")].every((fold) => !fold.open && box(fold).height < 60),
    stacked: panels.length == 2 ? panels[1].top >= panels[0].bottom : null,
    drawn: panels.map((panel) => panel.width),
  }};
}}
addEventListener("load", () => {{
  const frames = [...document.querySelectorAll("iframe")];
  document.getElementById("measured").textContent = JSON.stringify(frames.map(measure));
}});
</script>"""
FAULTY = '<body style="width: 900px">too wide<img src="missing.png"><script>console.error("seen")</script>'


SWITCHES = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --hide-scrollbars --window-size=1400,1000 --enable-logging=stderr --v=0
--dump-dom"""


@dataclass(frozen=True)
class Seen:
    """The report of a browser.

    results: the measurements in each frame. console: messages of the browser. asked: requested paths, except the pages
    of the frames.
    """

    results: list[dict[str, Any]]
    console: list[str]
    asked: list[str]


def measured(profile: Path, frames: list[tuple[int, str]], *options: str) -> Seen:
    """Measure how a browser shows pages in frames of the given widths in pixels."""
    chromium = shutil.which("chromium")
    assert chromium is not None
    elements = "".join(
        f'<iframe width="{width}" height="900" style="border:0" src="/{i}"></iframe>'
        for i, (width, _) in enumerate(frames)
    )
    pages = {f"/{i}": text for i, (_, text) in enumerate(frames)} | {"/": MEASURE.format(frames=elements)}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path in pages else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(pages.get(self.path, "").encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            done = subprocess.run(
                [
                    chromium,
                    *SWITCHES.split(),
                    *options,
                    f"--user-data-dir={profile}",
                    f"http://127.0.0.1:{server.server_port}/",
                ],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
        finally:
            server.shutdown()
            thread.join()
    found = re.search(r'<pre id="measured">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return Seen(
        json.loads(html.unescape(found[1])),
        re.findall(r"CONSOLE.*?\] (.*)", done.stderr),
        sorted(path for path in asked if path not in pages),
    )


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_report_without_overflow_errors_or_requests(tmp_path: Path, scheme: str) -> None:
    options = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    seen = measured(tmp_path, [(1280, rendered()), (360, rendered()), (360, FAULTY)], *options)
    *reports, faulty = seen.results
    # The measurements detect a faulty page.
    assert faulty["scroll"] > faulty["client"]
    assert faulty["requests"] == 1
    assert seen.asked == ["/missing.png"]
    assert any("seen" in message for message in seen.console)
    assert all("seen" in message or "missing.png" in message for message in seen.console), seen.console
    paper = palettes()[scheme]["paper"]
    for width, report in zip((1280, 360), reports, strict=True):
        assert report["client"] == width
        assert report["scroll"] <= width
        assert report["requests"] == 0
        assert report["dark"] == (scheme == "dark")
        assert report["paper"] == f"rgb({', '.join(str(int(paper[i : i + 2], 16)) for i in (1, 3, 5))})"
        assert report["scrolled"] == 200
        assert abs(report["stuck"]) < 1  # the first column stays while the table scrolls
        assert report["folded"]
        assert report["stacked"] == (width == 360)
        assert min(report["drawn"]) > 300


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_long_names_and_large_figures_fit_on_a_phone(tmp_path: Path) -> None:
    long = "averyveryverylongnamewithnoblankinit" * 5
    table = Table(long, (Column(long, numeric=False), Column("value")), ((Cell(long), Cell("1")),))
    figure = Illustration("f", long, long, long, (PANEL.format(width=2000, height=1000, colour="#000", title="t"),))
    text = page.render(Report(long, (Paragraph(long, "warning"), table, figure)))
    seen = measured(tmp_path, [(360, text)])
    assert seen.results[0]["scroll"] <= 360
    assert not seen.console
    assert not seen.asked
