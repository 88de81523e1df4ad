r"""A document as a complete LaTeX file, with tables to copy into a paper (they need booktabs and array).

The file needs only TeX Live's base and recommended packages: array, booktabs, float, geometry, graphicx, textcomp.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, chop_cells

from optbench.report import document as doc
from optbench.report.layout import GAP, code_lines, one_line, pack, title_lines

ROLES: frozenset[doc.Role] = frozenset({"closing", "outline", "minor", "numbers"})

LINE_WIDTH = 104
"""Characters per line of a table, in \\small on A4 with the margins below; a gap between columns counts as two."""
PAGE_ROWS = 40
"""Maximum number of lines of a table on a page; a longer table is split."""
TEXT_WIDTH = 34
"""Maximum number of characters on a line of a cell; a longer text is wrapped."""
CODE_WIDTH = 84

PREAMBLE = r"""\documentclass[a4paper]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\usepackage[margin=2.2cm]{geometry}
\usepackage{array}
\usepackage{booktabs}
\usepackage{float}
\usepackage{graphicx}
\usepackage{textcomp}
% Tables and figures stay in place: a report has too many of them for LaTeX to float.
\floatplacement{table}{H}
\floatplacement{figure}{H}
\setlength{\parindent}{0pt}
\setlength{\parskip}{0.5em}
\setlength{\belowcaptionskip}{6pt}
\setlength{\emergencystretch}{3em}"""

ASCII = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    # At the start of a row, [ and * would be read as an argument of the preceding line break.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}
SYMBOLS = {
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "‘": r"\textquoteleft{}",
    "’": r"\textquoteright{}",
    "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}",
    "…": r"\ldots{}",
    "\N{NO-BREAK SPACE}": "~",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
    "\N{THIN SPACE}": r"\,",
    "\N{ZERO WIDTH SPACE}": "",
    "•": r"\textbullet{}",
    "°": r"\textdegree{}",
    "§": r"\S{}",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
}
COMMANDS = """
± pm  ∓ mp  × times  ÷ div  · cdot  ≤ leq  ≥ geq  ≠ neq  ≈ approx  ≪ ll  ≫ gg  ∞ infty  ∈ in  ∑ sum  ∏ prod  ∂ partial
∇ nabla  √ surd  ✓ surd  ✔ surd  ✗ times  ✘ times  ‖ Vert  ⟨ langle  ⟩ rangle  ↑ uparrow  ↓ downarrow  → rightarrow
← leftarrow  ↔ leftrightarrow  ⇒ Rightarrow  α alpha  β beta  γ gamma  δ delta  ε varepsilon  ϵ epsilon  ζ zeta  η eta
θ theta  ι iota  κ kappa  λ lambda  µ mu  μ mu  ν nu  ξ xi  π pi  ρ rho  ς varsigma  σ sigma  τ tau  υ upsilon  φ varphi
ϕ phi  χ chi  ψ psi  ω omega  ℓ ell  Γ Gamma  Δ Delta  Θ Theta  Λ Lambda  Ξ Xi  Π Pi  Σ Sigma  Υ Upsilon  Φ Phi  Ψ Psi
Ω Omega
"""
MATHS: dict[str, str] = {"−": "-"} | {symbol: f"\\{name}" for symbol, name in re.findall(r"(\S) (\w+)", COMMANDS)}
LETTERS = set("ĂăĄąĆćČčĎďĐđĘęĚěĞğĹĺĽľŁłŃńŇňŐőŒœŔŕŘřŚśŞşŠšŢţŤťŮůŰűŸŹźŻżŽž") | {
    chr(code) for code in range(0xC0, 0x100) if code not in (0xD7, 0xF7)
}
"""Non-ASCII letters that T1 fonts contain."""


def render(document: doc.Report) -> str:
    """Render the document as a complete LaTeX file. An illustration whose PDF was not written is left out."""
    labels: set[str] = set()
    lines = [PREAMBLE, rf"\title{{{escape(document.title)}}}", r"\author{}", r"\date{}"]
    lines += [r"\begin{document}", r"\maketitle", *_blocks(document.blocks, labels), r"\end{document}"]
    return "\n\n".join(lines) + "\n"


def escape(text: str) -> str:
    r"""Put `text` on one line and escape it for pdfTeX; a character without a glyph becomes `U+XXXX`."""
    # Without separators, -- would become a dash and ,, a quotation mark.
    apart = re.sub(r"([-,])(?=\1)", "\\1\0", unicodedata.normalize("NFC", one_line(text)))
    return "".join("{}" if character == "\0" else _character(character) for character in apart)


def _character(character: str) -> str:
    if character in ASCII:
        return ASCII[character]
    if character.isascii() or character in LETTERS:
        return character
    if character in SYMBOLS:
        return SYMBOLS[character]
    maths = _maths(character)
    return rf"\texttt{{U+{ord(character):04X}}}" if maths is None else f"${maths}$"


def _maths(character: str) -> str | None:
    if character in MATHS:
        return MATHS[character]
    # ², ₁, ⁻ and similar are compatibility forms of an ordinary character.
    kind, _, plain = unicodedata.decomposition(character).partition(" ")
    if kind in ("<super>", "<sub>") and " " not in plain:
        inner = chr(int(plain, 16))
        inner = MATHS.get(inner, inner)
        if inner.isascii() and (inner.isalnum() or inner in "+-=()"):
            return f"{'^' if kind == '<super>' else '_'}{{{inner}}}"
    return None


def _blocks(blocks: Sequence[doc.Block], labels: set[str]) -> list[str]:
    return [part for block in doc.shown(blocks, ROLES) for part in _block(block, labels)]


def _block(block: doc.Shown, labels: set[str]) -> list[str]:
    match block:
        case doc.Heading(text, level):
            return [rf"\{'sub' * min(level - 1, 2)}section{{{escape(text)}}}"]
        case doc.Paragraph(text, tone):
            return [_toned(text, tone)]
        case doc.Items(items, tone):
            # Brackets in an item are escaped with braces, so that they are not read as \item[...].
            entries = [rf"\item {_toned(item, 'plain' if tone == 'quiet' else tone)}" for item in items]
            listed = "\n".join([r"\begin{itemize}", *entries, r"\end{itemize}"])
            return [f"{{\\footnotesize\n{listed}\n\\par}}" if tone == "quiet" else listed] if items else []
        case doc.Commands(text):
            return ["\n".join(_code(text))]
        case doc.Table():
            return list(_tables(block, labels))
        case doc.Illustration():
            return _illustration(block, labels)
        case doc.Fold(title, inner):
            # Without the empty box the run-in title would wait for text and appear after the tables.
            return [rf"\paragraph{{{escape(title)}}}\mbox{{}}", *_blocks(inner, labels)]


def _toned(text: str, tone: str) -> str:
    escaped = escape(text)
    match tone:
        case "warning":
            return rf"\textbf{{Warning:}} {escaped}"
        case "good" | "bad":
            return rf"\textbf{{{escaped}}}"
        case "quiet":
            return rf"{{\footnotesize {escaped}\par}}"
        case _:
            return escaped


def _code(text: str) -> Iterator[str]:
    lines = code_lines(text)
    if all(line.isascii() and len(line) <= CODE_WIDTH and r"\end{verbatim}" not in line for line in lines):
        yield from (r"\begin{verbatim}", *lines, r"\end{verbatim}")
        return
    # Lines that verbatim cannot print, or would print into the margin, are set as ordinary text, broken at blanks.
    yield r"\begin{flushleft}\ttfamily\small"
    for line in lines:
        indent = len(line) - len(line.lstrip())
        yield rf"\hangindent=2em {'~' * indent}{escape(line)}\par"
    yield r"\end{flushleft}"


def _tables(table: doc.Table, labels: set[str]) -> Iterator[str]:
    texts = [[one_line(row[i].text) for row in table.rows] for i in range(len(table.columns))]
    widths = [
        max(map(cell_len, (*title_lines(column), *entries)))
        for column, entries in zip(table.columns, texts, strict=True)
    ]
    widths = [w if column.numeric else min(w, TEXT_WIDTH) for w, column in zip(widths, table.columns, strict=True)]
    room = LINE_WIDTH - sum(widths[: table.keys]) - GAP * (table.keys - 1)
    packed = pack([GAP + width for width in widths[table.keys :]], room)
    first = True
    for piece in packed:
        shown = [*range(table.keys), *(table.keys + i for i in piece)]
        for rows in _pages(table, widths):
            caption = escape(table.caption) + ("" if first else " (continued)")
            yield _piece(table, shown, widths, rows, caption, _label("tab", table.caption, labels))
            first = False


def _pages(table: doc.Table, widths: Sequence[int]) -> list[list[int]]:
    """Split the rows into pages, where the height of a row is that of its longest text after wrapping."""
    pages: list[list[int]] = [[]]
    lines = 0
    for n, row in enumerate(table.rows):
        height = max(
            -(-cell_len(one_line(cell.text)) // max(width, 1)) for cell, width in zip(row, widths, strict=True)
        )
        if pages[-1] and lines + height > PAGE_ROWS:
            pages.append([])
            lines = 0
        pages[-1].append(n)
        lines += height
    return pages


def _piece(
    table: doc.Table, shown: Sequence[int], widths: Sequence[int], rows: Sequence[int], caption: str, label: str
) -> str:
    titles = {i: title_lines(table.columns[i]) for i in shown}
    height = max(map(len, titles.values()))
    folded = {i for i in shown if not table.columns[i].numeric and widths[i] == TEXT_WIDTH}
    header = []
    for line in range(height):
        at = {i: line - (height - len(titles[i])) for i in shown}
        header.append(_row(escape(titles[i][at[i]]) if at[i] >= 0 else "" for i in shown))
    body = [_row(_cell(table.rows[n][i], TEXT_WIDTH if i in folded else None) for i in shown) for n in rows]
    columns = "".join(
        # A digit is half an em wide, and an average character of text is slightly narrower.
        rf">{{\raggedright\arraybackslash}}p{{{TEXT_WIDTH / 2:g}em}}" if i in folded else "lr"[table.columns[i].numeric]
        for i in shown
    )
    top = [r"\begin{table}", r"\centering\small", r"\setlength{\tabcolsep}{4pt}"]
    top += [rf"\caption{{{caption}}}", rf"\label{{{label}}}", rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}"]
    lines = [*top, r"\toprule", *header, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines)


def _row(cells: Iterator[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: doc.Cell, width: int | None) -> str:
    text = one_line(cell.text)
    if width is None:
        escaped = escape(text)
    else:
        # A word longer than the column may break anywhere, as on a terminal.
        words = [r"\allowbreak{}".join(map(escape, chop_cells(word, width - 6))) for word in text.split(" ")]
        escaped = " ".join(words)
    return rf"\textbf{{{escaped}}}" if cell.tone in ("good", "bad", "warning") else escaped


def _label(kind: str, text: str, labels: set[str]) -> str:
    """Return a label that is unique in the document, and add it to `labels`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    slug = f"{kind}:{re.sub('[^a-z0-9]+', '-', plain).strip('-')}"
    label, n = slug, 1
    while label in labels:
        n += 1
        label = f"{slug}-{n}"
    labels.add(label)
    return label


def _illustration(figure: doc.Illustration, labels: set[str]) -> list[str]:
    file = figure.files.get("pdf")
    if file is None:
        return []
    if not re.fullmatch(r"[\w./ +@:,=()-]+", file):
        # TeX cannot read files with other characters in their names.
        return [rf"\textbf{{{escape(figure.title)}}} (\texttt{{{escape(file)}}}): {escape(figure.caption)}"]
    lines = [
        r"\begin{figure}",
        r"\centering",
        rf"\includegraphics[width=\linewidth]{{\detokenize{{{file}}}}}",
        rf"\caption{{\textbf{{{escape(figure.title)}.}} {escape(figure.caption)}}}",
        rf"\label{{{_label('fig', figure.name, labels)}}}",
        r"\end{figure}",
    ]
    return ["\n".join(lines)]
