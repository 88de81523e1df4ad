"""Every format shows the whole document, and names cannot inject markup."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.cells import cell_len
from rich.console import Console

from optbench.report import layout
from optbench.report.document import (
    Cell,
    Column,
    Commands,
    Fold,
    Heading,
    Illustration,
    Items,
    Paragraph,
    Part,
    Report,
    Table,
    Tone,
)
from optbench.report.formats import latex, markdown
from optbench.report.formats import terminal as console
from optbench.report.numbers import marked

NASTY = (
    "my_opt*",
    "<script>alert(1)</script>",
    "a|b\\|c",
    "[bold]x[/bold] :smile:",
    "adam_rates_with_a_long_name_and_no_blank lr=0.000316",
    "$\\frac{50%}{#1}$ ~^&amp; \\end{tabular} \\\\[2cm]",
    "`x` _y_ **z** ![i](http://e.org/i.png)",
    "θ₁ ≤ β² … ’ ✓ → Å ő 漢字 🙂",
    "- [x] # \x1b[31m\n\nline\ttab",
)
PANEL = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width}pt" height="{height}pt" viewBox="0 0 200 100">'
    '<polyline points="10,90 60,40 110,60 190,20" fill="none" stroke-width="3" stroke="{colour}"/>'
    '<text x="10" y="98" font-size="8" fill="currentColor">{title}: accuracy after each task</text></svg>'
)


def sample() -> Report:
    """Build a report with everything a real one may contain, and with awkward names."""
    numbers = tuple(Column(f"measure\nno {i}{' ↑' if i % 2 else ''}") for i in range(14))
    wide = Table(
        "permuted-mnist, mlp-100: everything at once",
        (Column("optimizer", numeric=False), Column("trials"), *numbers),
        tuple(
            (Cell(name), Cell("8 of 10", "warning") if i % 3 else Cell("10"), *_values(i))
            for i, name in enumerate(NASTY)
        ),
        keys=2,
    )
    verdicts = Table(
        "Claims of the suite",
        (Column("claim", numeric=False), Column("n"), Column("effect"), Column("p"), Column("verdict", numeric=False)),
        (
            (
                Cell("shampoo forgets less than adamw on permuted-mnist (arXiv:2507.12224, Figure 3 left)"),
                Cell("10"),
                Cell("−0.042 [−0.048, −0.036]"),
                Cell("0.006"),
                Cell("supported", "good"),
            ),
            (
                Cell("a smaller learning rate does not save Adam: θ, ρ, λ ≥ 0"),
                Cell("10"),
                Cell("+0.301 [+0.2, +0.4]"),
                Cell("0.002"),
                Cell("contradicted", "bad"),
            ),
            (Cell("rank is lower"), Cell("5"), Cell("–"), Cell("–", "quiet"), Cell("no evidence", "quiet")),
        ),
    )
    short = Table(
        "permuted-mnist, mlp-100: learning and forgetting",
        (
            Column("optimizer", numeric=False),
            Column("trials"),
            Column("average\naccuracy ↑"),
            Column("\nforgetting ↓"),
            Column("learning\naccuracy ↑"),
        ),
        tuple(
            tuple(map(Cell, row))
            for row in (
                ("sgd", "10", "0.931±0.006", "0.042±0.008", "0.959±0.001"),
                ("adamw", "10", "0.923±0.010", "0.048±0.014", "0.955±0.001"),
                ("shampoo", "10", "0.968±0.002", "0.011±0.002", "0.975±0.001"),
            )
        ),
    )
    empty = Table("Nothing measured", (Column("optimizer", numeric=False), Column("value")), ())
    command = "optbench run continual --experiment permuted-mnist --optimizer 'mine=./mine.py:My_Opt*' " + (
        "--set 'optimizers.mine.lr={log: [1e-4, 1e-1], points: 7}' --seeds 0,1,2,3,4,5,6,7,8,9"
    )
    return Report(
        "continual-20260101T000000: complete, 90 trials: 88 ok, 2 diverged (cpu)",
        (
            Paragraph("Ten seeds; every optimizer starts from the same weights and sees the same batches."),
            Heading("permuted-mnist, mlp-100", 1),
            short,
            Paragraph("Early stopping on test loss, patience 3, at most 3 epochs a task.", "quiet"),
            Paragraph("my_opt* lr=0.1: 8 of 10; 2 diverged: <b>not</b> in the means.", "warning"),
            Heading("The solution: |w| < .01 rms & _rank_ *", 2),
            wide,
            Items(tuple(f"{name}: undefined in some of its trials." for name in NASTY), "warning"),
            Heading("Claims", 1),
            verdicts,
            Paragraph("The data speak for it.", "good"),
            Paragraph("The data speak against it.", "bad"),
            Illustration(
                "figure-3",
                "Final accuracy by width",
                "Every dot is a seed; the line is the median. 95% intervals, n = 10.",
                'Shampoo lies above SGD & AdamW at each of the "three" widths.',
                (
                    PANEL.format(width=432, height=216, colour="#0072b2", title="Shampoo"),
                    PANEL.format(width=432, height=216, colour="#d55e00", title="AdamW"),
                ),
                {"svg": "figures/figure 3 (a).svg", "pdf": "figures/figure_3.pdf"},
            ),
            Illustration("none", "No file", "Not written anywhere.", "nothing"),
            Fold(
                "Accuracy <matrices>",
                (Paragraph("Mean over seeds."), empty, Commands("optbench report\n\\end{verbatim} ±")),
            ),
            Heading("How to repeat it", 1),
            Commands(f"{command}\noptbench report latest   # ``` and <b>"),
            Part("numbers", Paragraph("Only on paper.")),
            Part("chart", Paragraph("Only in a log.")),
            Items(("effective rank: exp of the entropy of the feature covariance's spectrum", "sd: sample"), "quiet"),
            Items(("first", "second")),
        ),
    )


def _values(row: int) -> tuple[Cell, ...]:
    return tuple(
        Cell("–", "quiet") if (row + i) % 11 == 10 else Cell(f"{(row * 14 + i) / 97:.3f}±{i / 1000:.3f}")
        for i in range(14)
    )


WIDTHS = (60, 80, 120, 200)
MARKUP = "ab1 |\\`*_~[](){}<>!#&;$%^\"'-+=.,:@/\n\t\x1b\x00é±θ"
texts = st.text(st.sampled_from(MARKUP), max_size=12) | st.text(max_size=8)


def blocks(document: Report, kind: type) -> list[Any]:
    """Return all blocks of a kind, including folded ones and those for some formats only."""
    found = []
    pending = list(document.blocks)
    while pending:
        block = pending.pop(0)
        if isinstance(block, kind):
            found.append(block)
        if isinstance(block, Fold):
            pending = [*block.blocks, *pending]
        if isinstance(block, Part):
            pending = [block.block, *pending]
    return found


def table_of(names: list[str], tone: str = "plain") -> Report:
    """Return a document of one table with these texts as caption, titles and cells."""
    columns = (Column(names[0], numeric=False), Column(names[1]))
    return Report("t", (Table(names[2], columns, tuple((Cell(n), Cell(n, cast(Tone, tone))) for n in names)),))


def terminal(document: Report, width: int, **options: Any) -> str:
    printed = Console(width=width, file=io.StringIO(), **options)
    console.show(document, printed)
    assert isinstance(printed.file, io.StringIO)
    return printed.file.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
def test_terminal_output_fits_the_width_and_cuts_no_number(width: int) -> None:
    lines = terminal(sample(), width).splitlines()
    commands = {f"  {line}" for block in blocks(sample(), Commands) for line in block.text.split("\n")}
    assert max(cell_len(line) for line in lines if line not in commands) <= width
    words = Counter(" ".join(lines).split())
    shown = [block for block in sample().blocks if isinstance(block, Table)]
    numbers = Counter(cell.text for table in shown for row in table.rows for cell in row if "±" in cell.text)
    assert len(numbers) > 100
    assert all(words[number] == count for number, count in numbers.items())
    wide = next(table for table in blocks(sample(), Table) if len(table.columns) == 16)
    pieces = sum("everything at once" in line for line in lines)
    assert sum("everything at once (continued)" in line for line in lines) == pieces - 1
    for name in ("my_opt*", "<script>alert(1)</script>"):
        rows = [line.split() for line in lines if line.startswith(f"{name}  ")]
        assert len(rows) == pieces  # every piece repeats the key columns
        number = next(i for i, row in enumerate(wide.rows) if row[0].text == name)
        values = [value for row in rows for value in row if "±" in value or value == "–"]
        assert values == [cell.text for cell in wide.rows[number][2:]]


def test_a_column_wider_than_the_terminal_is_not_cut() -> None:
    printed = terminal(sample(), 9)
    assert "−0.042 [−0.048, −0.036]" in printed
    assert "0.968±0.002" in printed


def test_a_long_text_is_wrapped_before_a_verdict_next_to_it() -> None:
    rows = [("claims " * 15, "no evidence"), ("short", "supported")]
    table = Table(
        "Claims",
        (Column("claim", numeric=False), Column("verdict", numeric=False)),
        tuple((Cell(a), Cell(b)) for a, b in rows),
    )
    lines = terminal(Report("report", (table,)), 40).splitlines()
    assert any(line.endswith("no evidence") for line in lines)
    assert max(map(len, lines)) <= 40


def test_a_command_stays_one_line_on_a_terminal() -> None:
    code = [block for block in sample().blocks if isinstance(block, Commands)]
    for line in code[0].text.split("\n"):
        assert f"  {line}\n" in terminal(sample(), 60)


def test_terminal_output_omits_paper_only_blocks_and_marks_warnings() -> None:
    printed = terminal(sample(), 200)
    assert "Only in a log." in printed
    assert "! my_opt* lr=0.1: 8 of 10" in printed
    for hidden in ("Only on paper.", "Accuracy <matrices>", "Mean over seeds", "Final accuracy by width", "figure_3"):
        assert hidden not in printed


def test_colours_are_used_only_if_the_console_supports_them() -> None:
    assert "\x1b" not in terminal(sample(), 80)
    coloured = terminal(sample(), 200, force_terminal=True, color_system="standard", no_color=False)
    for text, code in (("supported", 32), ("contradicted", 31), ("8 of 10", 33), ("no evidence", 2)):
        assert re.search(rf"\x1b\[{code}m{text}", coloured), text
    assert "[bold]x[/bold] :smile:" in re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert "\x1b[31m line" not in coloured  # an escape sequence in a name


@given(st.lists(st.integers(1, 30), max_size=30), st.integers(1, 80))
def test_pack_needs_the_fewest_pieces(widths: list[int], room: int) -> None:
    pieces = layout.pack(widths, room)
    assert [i for piece in pieces for i in piece] == list(range(len(widths)))
    for piece in pieces:
        assert len(piece) == 1 or sum(widths[i] for i in piece) <= room
    least = [0]  # the fewest pieces for the first i columns, found by trying every last piece
    for i in range(1, len(widths) + 1):
        starts = [j for j in range(i) if j == i - 1 or sum(widths[j:i]) <= room]
        least.append(1 + min(least[j] for j in starts))
    assert len(pieces) == max(1, least[-1])


@given(st.integers(1, 20), st.integers(1, 10))
def test_pack_shares_equal_columns_evenly(columns: int, share: int) -> None:
    sizes = [len(piece) for piece in layout.pack([7] * columns, 7 * share)]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("width", range(15, 30))
def test_a_dagger_stays_on_the_line_of_its_name(width: int) -> None:
    columns = (Column("x", numeric=False), Column("n"))
    table = Table("c", columns, ((Cell(marked("rates lr=0.1", True)), Cell("12345")),))
    assert "lr=0.1\N{NO-BREAK SPACE}†" in terminal(Report("t", (table,)), width)


def parsed(document: Report) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(markdown.render(document))


def plain(token: Token) -> str:
    """Return the text of an inline token; assert that it contains only text and strong text."""
    children = token.children or []
    assert {child.type for child in children} <= {"text", "strong_open", "strong_close"}, token.content
    return "".join(child.content for child in children)


def test_markdown_renders_every_table_of_the_document() -> None:
    tokens = parsed(sample())
    rendered: list[list[list[str]]] = []
    for token, following in pairwise(tokens):
        match token.type:
            case "table_open":
                rendered.append([])
            case "tr_open":
                rendered[-1].append([])
            case "th_open" | "td_open":
                rendered[-1][-1].append(plain(following))
    expected = [
        [
            [" ".join(column.title.split()) for column in table.columns],
            *([layout.one_line(cell.text) for cell in row] for row in table.rows),
        ]
        for table in blocks(sample(), Table)
    ]
    assert rendered == expected


@given(st.lists(texts, min_size=3, max_size=5), st.sampled_from(["plain", "warning", "good"]))
def test_markdown_tables_can_contain_any_characters(names: list[str], tone: str) -> None:
    tokens = parsed(table_of(names, tone))
    cells = [plain(b) for a, b in pairwise(tokens) if a.type in ("th_open", "td_open")]
    titles = [" ".join(filter(None, layout.title_lines(Column(name)))).strip() for name in names[:2]]
    assert cells == [*titles, *(layout.one_line(name) for name in names for _ in range(2))]
    assert [token.type for token in tokens].count("table_open") == 1


@given(texts)
@example("[a]: b")
@example("1. one")
@example("12) twelve")
@example("- - -")
@example("===")
@example("# title #")
@example("a](b) ![c](d)")
@example("<http://e.org> &lt; &#35;")
def test_text_in_markdown_stays_text(text: str) -> None:
    line = layout.one_line(text)
    document = Report(
        text, (Heading(text), Paragraph(text), Items((text, text)), Items((text,)), Paragraph(text, "good"))
    )
    tokens = parsed(document)
    assert [plain(token) for token in tokens if token.type == "inline" and token.content] == [line] * 7 * bool(line)
    kinds = [token.type for token in tokens]
    assert kinds.count("heading_open") == 2
    assert kinds.count("bullet_list_open") == 2
    assert kinds.count("list_item_open") == 3
    assert not {"blockquote_open", "ordered_list_open", "code_block", "fence", "hr"} & set(kinds)


def test_markdown_contains_only_its_own_html() -> None:
    tokens = parsed(sample())
    raw = [token.content for token in tokens if token.type == "html_block"]
    assert raw == [
        "<details>\n<summary>Accuracy &lt;matrices&gt;</summary>\n",
        "</details>\n",
        "<!-- -->\n",
    ]
    inline = [child for token in tokens for child in token.children or []]
    assert not [child.content for child in inline if child.type in ("html_inline", "link_open")]
    images = [child for child in inline if child.type == "image"]
    assert [image.attrs["src"] for image in images] == ["figures/figure%203%20%28a%29.svg"]
    assert images[0].content == 'Shampoo lies above SGD & AdamW at each of the "three" widths.'


def test_markdown_code_can_contain_fences() -> None:
    code = "echo 1\n```\n  ````` <b>"
    fences = [token for token in parsed(Report("t", (Commands(code), Paragraph("after")))) if token.type == "fence"]
    assert [fence.content for fence in fences] == [f"{code}\n"]


def test_markdown_warnings_are_alerts() -> None:
    rendered = markdown.render(sample())
    assert "> [!WARNING]\n> my_opt\\* lr=0.1: 8 of 10" in rendered
    assert "> [!WARNING]\n> - my_opt\\*: undefined" in rendered
    assert "Only in a log." in rendered
    assert "Only on paper." not in rendered


def bare(text: str) -> str:
    """Remove commands, escaped characters and formulas from LaTeX; the rest is text or unescaped markup."""
    text = re.sub(r"\\[a-zA-Z]+(\{\})?|\\[{}$&#%_,]", "x", text)
    return re.sub(r"\$[^$]*\$", "x", text)


def balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"[{}]", re.sub(r"\\[\\{}]", "", text)):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


@given(texts)
def test_latex_escapes_all_special_characters(text: str) -> None:
    escaped = latex.escape(text)
    assert balanced(escaped)
    assert not re.search(r"[\\$&#%_^]|--|,,|\n", bare(escaped))
    assert not re.match(r"[\[*]", escaped)  # would be read as an argument after a line break
    if text.isascii() and text.isalnum():
        assert escaped == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("0.95±0.01 × ↑↓", r"0.95$\pm$0.01 $\times$ $\uparrow$$\downarrow$"),
        ("θ₁ ≤ β², λ ≥ −1", r"$\theta$$_{1}$ $\leq$ $\beta$$^{2}$, $\lambda$ $\geq$ $-$1"),
        ("1–2 … don’t ✓ → a·b", r"1\textendash{}2 \ldots{} don\textquoteright{}t $\surd$ $\rightarrow$ a$\cdot$b"),
        ("--seeds 漢", r"-{}-seeds \texttt{U+6F22}"),
        ("Erdo\u030bs", "Erdős"),
    ],
)
def test_latex_supports_the_characters_of_the_field(text: str, escaped: str) -> None:
    assert latex.escape(text) == escaped


def tabulars(rendered: str) -> list[tuple[int, list[str]]]:
    """Return (number of columns, rows) of every tabular."""
    found = []
    for spec, body in re.findall(
        r"\\begin\{tabular\}\{@\{\}([^\n]*)@\{\}\}\n(.*?)\\end\{tabular\}", rendered, re.DOTALL
    ):
        columns = len(re.findall("[lrp]", re.sub(r">\{[^}]*\}|\{[^}]*\}", "", spec)))
        rows = [line for line in body.splitlines() if not re.fullmatch(r"\\(top|mid|bottom)rule", line)]
        found.append((columns, rows))
    return found


@given(st.lists(texts, min_size=3, max_size=5))
def test_latex_rows_have_as_many_cells_as_columns(names: list[str]) -> None:
    rendered = latex.render(table_of(names))
    ((columns, rows),) = tabulars(rendered)
    assert columns == 2
    assert all(row.endswith(r" \\") and len(re.findall(r"(?<!\\)&", row)) == 1 for row in rows)
    assert len(rows) == len(names) + max(len(layout.title_lines(Column(name))) for name in names[:2])
    assert balanced(rendered)


def test_latex_environments_are_balanced() -> None:
    rendered = latex.render(sample())
    open_environments: list[str] = []
    for kind, name in re.findall(r"^\\(begin|end)\{(\w+)\}", rendered, re.MULTILINE):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert not open_environments
    labels = re.findall(r"\\label\{(.*)\}", rendered)
    assert len(labels) == len(set(labels)) > len(blocks(sample(), Table))
    found = tabulars(rendered)
    assert len(found) == rendered.count(r"\begin{table}") == len(labels) - 1  # plus one figure
    for columns, rows in found:
        assert all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
    for table in blocks(sample(), Table):
        for row in table.rows:
            for cell in row:
                # A long name may contain break points.
                assert latex.escape(cell.text) in rendered.replace(r"\allowbreak{}", ""), cell.text
    assert r"\includegraphics[width=\linewidth]{\detokenize{figures/figure_3.pdf}}" in rendered
    assert r"\paragraph{Accuracy \textless{}matrices\textgreater{}}\mbox{}" in rendered
    assert "Only on paper." in rendered
    assert "Only in a log." not in rendered


def test_latex_splits_a_table_longer_than_a_page() -> None:
    rows = tuple((Cell(f"row {i}"), Cell(str(i))) for i in range(100))
    found = tabulars(latex.render(Report("t", (Table("c", (Column("a", numeric=False), Column("b")), rows),))))
    assert [len(rows) - 1 for _, rows in found] == [40, 40, 20]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path: Path) -> None:
    characters = [chr(code) for code in range(0x20, 0x2C00) if chr(code).isprintable()]
    every = [" ".join(characters[i : i + 64]) for i in range(0, len(characters), 64)]
    document = Report(
        sample().title,
        (
            *(block for block in sample().blocks if not isinstance(block, Illustration)),
            *map(Paragraph, every),
            *map(Commands, every[:4]),
            table_of(["[2cm]", "*", "&"]).blocks[0],
        ),
    )
    (tmp_path / "report.tex").write_text(latex.render(document), encoding="utf-8")
    command = ["pdflatex", "-draftmode", "-interaction=nonstopmode", "-halt-on-error", "-file-line-error", "report.tex"]
    # Draft mode typesets everything without embedding fonts. Font metrics are created in the folder of the test
    # instead of the home directory.
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"TEXMFVAR": str(tmp_path / "texmf")}, capture_output=True, check=False
    )
    log = (tmp_path / "report.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert "Missing character" not in log
    assert "Too many unprocessed floats" not in log
    assert max([0.0, *map(float, re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide\)", log))]) < 5
