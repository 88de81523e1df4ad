"""The fingerprint as text, 80 columns wide, or with wider strips on a wider terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from optbench.report.numbers import interval
from optbench.studies.fingerprint import wording
from optbench.studies.fingerprint.standing import Fingerprint, Judged, Standing
from optbench.studies.fingerprint.strips import TOPICS
from optbench.studies.fingerprint.words import sentences

LABEL, VALUE, PLACE, VERDICT = 22, 7, 5, 6
NARROWEST, WIDEST = 20, 60
GAP = 1
SHOWN = 5
"""Maximum number of neighbours listed."""
LETTERS = {"adamw": "A", "sgd": "S"}
"""Letters that mark the references on a strip."""
GOOD, BAD = "green", "red"
KEY = "On a strip, A is AdamW, S is SGD, : is several optimizers, and ┼ is an optimizer inside the interval."


def show(found: Fingerprint, console: Console) -> None:
    """Print a fingerprint on a console."""
    columns = len(found.references)
    taken = LABEL + VALUE + PLACE + columns * (VERDICT + GAP) + 3 * GAP
    width = max(NARROWEST, min(WIDEST, console.width - taken))
    console.print(Text(wording.title(found), style="bold"), soft_wrap=True)
    console.print(Text(wording.subtitle(found)), soft_wrap=True)
    for remark in found.remarks:
        console.print(Text(remark, style="yellow"))
    console.print()
    heads = [judged[0].other for judged in found.references]
    topic = None
    for i, one in enumerate(found.standings):
        if one.strip.topic != topic:
            topic = one.strip.topic
            _head(console, TOPICS[topic], width, heads, first=i == 0)
        _line(console, one, [judged[i] for judged in found.references], width)
    console.print()
    for sentence in sentences(found):
        console.print(Text(sentence.text))
    console.print()
    if found.neighbours:
        nearest = found.neighbours[:SHOWN]
        listed = ", ".join(f"{one.name} {one.distance:.2f} {interval(one.interval, 2)}".rstrip() for one in nearest)
        what = ", 95% interval" if any(one.interval for one in nearest) else ""
        console.print(Text(f"Nearest (distance in standard deviations of the panel{what}): {listed}"))
    console.print(Text(wording.rates(found)))
    console.print()
    console.print(Text(KEY, style="dim"))
    for note in wording.notes(found):
        console.print(Text(note, style="dim"))


def _head(console: Console, topic: str, width: int, heads: list[str], *, first: bool) -> None:
    names = "".join(f" {head[:VERDICT]:<{VERDICT}}" for head in heads)
    right = f" {'':<{VALUE}} {'below':>{PLACE}}{names}" if first else ""
    console.print(Text(f"{topic:<{LABEL + GAP + width}}{right}".rstrip(), style="bold"), soft_wrap=True)


def _line(console: Console, one: Standing, judged: list[Judged], width: int) -> None:
    text = Text(f"{one.strip.title:<{LABEL}} ")
    text.append_text(strip(one, width))
    text.append(f" {wording.value(one):>{VALUE}} {wording.place(one):>{PLACE}}")
    for verdict in judged:
        word = wording.verdict(verdict)
        style = {"better": GOOD, "worse": BAD}.get(word, "")
        text.append(" ")
        text.append(f"{word:<{VERDICT}}", style=style)
    text.rstrip()
    console.print(text, soft_wrap=True)


def strip(one: Standing, width: int) -> Text:
    """Return a strip of `width` characters with the panel, the interval and the value, e.g. `·S ·  ·─●┼A·`."""
    places = [tick.centre for tick in one.ticks]
    ends = one.interval or ()
    every = [*places, *ends, *([one.centre] if one.centre is not None else [])]
    if not every:
        return Text(" " * width)
    low, high = min(every), max(every)

    def at(value: float) -> int:
        return round((value - low) / (high - low) * (width - 1)) if high > low else width // 2

    cells = [" "] * width
    for value in places:
        cells[at(value)] = "·" if cells[at(value)] == " " else ":"
    for tick in one.ticks:
        if tick.name in LETTERS:
            cells[at(tick.centre)] = LETTERS[tick.name]
    if one.centre is None:
        return Text("".join(cells), style="dim")
    styles = {}
    if one.interval:
        for i in range(at(one.interval[0]), at(one.interval[1]) + 1):
            cells[i] = {" ": "─", "·": "┼", ":": "┼"}.get(cells[i], cells[i])
            styles[i] = "bold"
    cells[at(one.centre)], styles[at(one.centre)] = "●", "bold cyan"
    text = Text()
    for i, cell in enumerate(cells):
        text.append(cell, style=styles.get(i, ""))
    return text
