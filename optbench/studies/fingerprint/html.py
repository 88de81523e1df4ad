"""The fingerprint as a self-contained HTML page, without scripts or external resources.

Hovering over a strip, or focusing it, shows the names of all optimizers on the strip, in ascending order of their
values. `fragment` returns the content without the surrounding page, for notebooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata, resources

from optbench.report.formats.html import HEAD, POLICY, escape
from optbench.report.numbers import UNDEFINED, estimate, interval, p_value
from optbench.studies.fingerprint import wording
from optbench.studies.fingerprint.panel import REFERENCES
from optbench.studies.fingerprint.standing import Fingerprint, Judged, Standing
from optbench.studies.fingerprint.strips import TOPICS
from optbench.studies.fingerprint.words import sentences

NEIGHBOURS = 5
AIR = 3.0
"""Percentage of a strip's width left free at each end."""


def page(found: Fingerprint) -> str:
    """Return the complete HTML page."""
    head = HEAD.format(
        policy=POLICY,
        version=metadata.version("optbench"),
        title=escape(wording.title(found)),
        style=_text("optbench.report", "style.css") + _text("optbench.studies.fingerprint", "page.css"),
    )
    return f"{head}<main>\n{_content(found)}</main>\n</body>\n</html>\n"


def fragment(found: Fingerprint) -> str:
    """Return the content and its style sheet, for embedding in another page."""
    return f"<style>{style()}</style>\n{_content(found)}"


def style() -> str:
    """Return the style sheet that `fragment` needs in addition to that of the surrounding page."""
    return _text("optbench.studies.fingerprint", "page.css")


def _text(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _content(found: Fingerprint) -> str:
    return "".join(f"{line}\n" for line in _lines(found))


def _lines(found: Fingerprint) -> Iterator[str]:
    yield '<article class="fingerprint">'
    yield f"<h1>{escape(wording.title(found))}</h1>"
    yield f'<p class="quiet">{escape(wording.subtitle(found))}</p>'
    for remark in found.remarks:
        yield f'<p class="warning">{escape(remark)}</p>'
    for sentence in sentences(found):
        yield f'<p class="words">{escape(sentence.text)}</p>'
    yield from _legend(found)
    for topic, name in TOPICS.items():
        yield f"<h2>{escape(name)}</h2>"
        for i, one in enumerate(found.standings):
            if one.strip.topic == topic:
                yield from _strip(found, one, [judged[i] for judged in found.references])
    yield from _neighbours(found)
    yield from _numbers(found)
    yield f"<p>{escape(wording.rates(found))}</p>"
    for note in wording.notes(found):
        yield f'<p class="quiet">{escape(note)}</p>'
    made = ", ".join(f"{key} {value}" for key, value in found.panel.made.items())
    yield f'<p class="quiet">The panel was made with {escape(made)}.</p>'
    yield "</article>"


def _legend(found: Fingerprint) -> Iterator[str]:
    names = [f'<span><i class="key own"></i>{escape(wording.own(found))}</span>']
    for kind, name in _marked(found).items():
        names.append(f'<span><i class="key {kind}"></i>{escape(name)}</span>')
    yield f'<p class="legend">{" ".join(names)} <span><i class="key"></i>the rest of the panel</span></p>'


def _marked(found: Fingerprint) -> dict[str, str]:
    """Return the optimizers with coloured ticks, by CSS class: the references and the nearest neighbour."""
    marked = {f"reference-{i}": name for i, name in enumerate(REFERENCES) if name in found.panel.names}
    nearest = next((one.name for one in found.neighbours), None)
    return marked if nearest is None or nearest in marked.values() else {**marked, "nearest": nearest}


def _strip(found: Fingerprint, one: Standing, judged: list[Judged]) -> Iterator[str]:
    places = [tick.centre for tick in one.ticks]
    every = [*places, *(one.interval or ()), *([one.centre] if one.centre is not None else [])]
    low, high = min(every, default=0.0), max(every, default=1.0)

    def at(value: float) -> float:
        return AIR + (100 - 2 * AIR) * ((value - low) / (high - low) if high > low else 0.5)

    kinds = {name: kind for kind, name in _marked(found).items()}
    yield f'<div class="strip" tabindex="0" role="group" aria-label="{escape(one.strip.label)}">'
    yield f'<span class="name">{escape(one.strip.title)}</span>'
    yield '<span class="track" aria-hidden="true">'
    for tick in one.ticks:
        kind = kinds.get(tick.name, "")
        yield f'<i class="{f"tick {kind}".strip()}" style="left:{at(tick.centre):.2f}%"></i>'
    if one.interval is not None:
        left, right = at(one.interval[0]), at(one.interval[1])
        yield f'<i class="interval" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
    if one.centre is not None:
        yield f'<i class="dot" style="left:{at(one.centre):.2f}%"></i>'
    yield "</span>"
    said = wording.value(one) if one.centre is not None else "no value"
    below = f"{wording.place(one)} below" if one.centre is not None else ""
    yield f'<span class="value">{escape(said)}</span><span class="below">{escape(below)}</span>'
    words = " ".join(f'<span class="verdict {_colour(verdict)}">{escape(_said(verdict))}</span>' for verdict in judged)
    yield f'<span class="verdicts">{words or escape(one.obstacle)}</span>'
    yield f'<span class="names" role="note">{_names(found, one)}</span>'
    yield "</div>"


def _said(one: Judged) -> str:
    """Return a verdict with the other optimizer's name, e.g. `better than sgd` or `like adamw`."""
    word = wording.verdict(one)
    if one.differs:
        return f"{word} than {one.other}"
    return {"equal": f"like {one.other}", "open": f"open: {one.other}"}.get(word, f"{word} {one.other}")


def _colour(one: Judged) -> str:
    return {"better": "good", "worse": "bad"}.get(str(one.verdict), "plain")


def _names(found: Fingerprint, one: Standing) -> str:
    """Return all optimizers on a strip in ascending order, each with its value."""
    everybody = [(tick.centre, tick.name, False) for tick in one.ticks]
    if one.centre is not None:
        everybody.append((one.centre, found.name, True))
    listed = []
    for value, name, own in sorted(everybody, key=lambda entry: (entry[0], not entry[2])):
        text = f"{escape(name)}&nbsp;{value:.{one.strip.digits}f}"
        listed.append(f"<b>{text}</b>" if own else f"<span>{text}</span>")
    why = f"{escape(one.obstacle)}. " if one.obstacle else ""
    return f"{why}{' '.join(listed)}"


def _neighbours(found: Fingerprint) -> Iterator[str]:
    if not found.neighbours:
        return
    resampled = any(one.interval for one in found.neighbours)
    titles = ["optimizer", "distance", *(["95% interval", "nearest in"] if resampled else [])]
    titles += ["equal strips"] if found.has_verdicts else []
    heads = "".join(f'<th scope="col">{title}</th>' for title in titles)
    yield "<h2>Nearest in the panel</h2>"
    yield f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>'
    for one in found.neighbours[:NEIGHBOURS]:
        cells = [f"{one.distance:.2f}"]
        if resampled:
            cells += [interval(one.interval, 2) or UNDEFINED, f"{100 * one.nearest:.0f}%"]
        if found.has_verdicts:
            cells.append(f"{found.same_strips(one.name)} of {len(found.standings)}")
        numbers = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        yield f'<tr><th scope="row">{escape(one.name)}</th>{numbers}</tr>'
    yield "</tbody></table></div>"
    said = (
        "Distance: root mean square difference over strips, in standard deviations of the panel; a strip is weighted "
        "by how well it distinguishes optimizers, relative to the variation between seeds."
    )
    if resampled:
        said += " Nearest in: share of the resamples of the seeds in which no other optimizer is nearer."
    yield f'<p class="quiet">{said}</p>'


def _numbers(found: Fingerprint) -> Iterator[str]:
    yield "<details><summary>All numbers</summary>"
    heads = ["strip", "measured on", "value", "below"]
    for judged in found.references:
        heads += [f"against {judged[0].other}", "difference", "Holm p"]
    columns = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    yield f'<div class="wide"><table><thead><tr>{columns}</tr></thead><tbody>'
    for i, one in enumerate(found.standings):
        cells = [one.strip.experiment, wording.value_with_interval(one), wording.place(one)]
        for judged in found.references:
            verdict = judged[i]
            difference = estimate(verdict.result.difference, verdict.result.interval, one.strip.digits)
            cells += [str(verdict.verdict), difference, p_value(verdict.judgement.holm_p)]
        row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        yield f'<tr><th scope="row">{escape(one.strip.title)}</th>{row}</tr>'
    yield "</tbody></table></div></details>"
