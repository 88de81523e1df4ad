"""Fingerprints: statistics agree with independent references, words agree with verdicts, and pages are complete."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats

from optbench.errors import ComparisonError, StoreError, UsageError
from optbench.metrics.catalog import METRICS
from optbench.stats.verdict import DIFFERENT, Verdict
from optbench.studies.fingerprint import figure, html, records, terminal, wording
from optbench.studies.fingerprint.entry import Entry, Trials, experiments_of
from optbench.studies.fingerprint.neighbours import information, neighbours, own_half_is_nearest, standardised
from optbench.studies.fingerprint.panel import FILE, Panel, check, read, remarks, shipped, write
from optbench.studies.fingerprint.standing import Fingerprint, fingerprint
from optbench.studies.fingerprint.strips import EXPERIMENTS, STRIPS, SUITE
from optbench.studies.fingerprint.width import Width, width
from optbench.studies.fingerprint.words import sentences
from optbench.suite import load_suite, resolve_suite_path
from optbench.suite.dump import ADDED

SEEDS = tuple(range(10))
LEARNT = {"permuted": 0.94, "pairs": 0.97, "plasticity": 0.8, "matched": np.nan}


def entry(name: str, values: np.ndarray, **changes: Any) -> Entry:
    """Return the entry of an optimizer that learnt everything. values: (16, n)."""
    n = values.shape[1]
    trials = {
        one: Trials(("ok",) * n, tuple(f"start {seed}" for seed in range(n)), np.full(n, LEARNT[one]))
        for one in EXPERIMENTS
    }
    made = Entry(name, name, tuple(range(n)), values, trials, {one: {"lr": 0.1} for one in EXPERIMENTS})
    return dataclasses.replace(made, **changes)


def panel_of(*entries: Entry) -> Panel:
    return Panel(entries, entries[0].seeds, {"seed": 0}, 1, {"torch": "2"})


@pytest.fixture(scope="module")
def made() -> Panel:
    """Return a panel of AdamW, SGD and six others with different means and a shared effect of each seed."""
    random = np.random.default_rng(0)
    luck = random.normal(0, 2, (1, 16, 10))
    centres = random.normal(0, 3, (8, 16, 1))
    values = centres + luck + random.normal(0, 0.3, (8, 16, 10))
    names = ["adamw", "sgd", "a", "b", "c", "d", "e", "f"]
    return panel_of(*(entry(name, one) for name, one in zip(names, values, strict=True)))


@pytest.fixture(scope="module")
def found(made: Panel) -> Fingerprint:
    """Return the fingerprint of an optimizer between two of the panel, much nearer to `c`."""
    mine = 0.9 * made.entry("c").values + 0.1 * made.entry("sgd").values
    return fingerprint(entry("mine", mine), made)


def test_width_of_a_learning_rate_optimum() -> None:
    scores = [(1e-3, 0.5), (1e-2, 0.9), (1e-1, 0.9), (1.0, 0.0)]
    # Within 1% means down to .891 on both sides, interpolated linearly in the logarithm.
    left = (0.9 - 0.891) / (0.9 - 0.5)
    right = (0.9 - 0.891) / 0.9
    assert width(scores) == Width(round(1 + left + right, 4), False)
    assert width([(1e-2, 0.9), (1e-1, 0.8999)]) == Width(1.0, True)
    assert width([(1e-2, 0.9), (1e-1, np.nan), (1e-3, 0.2)]) == Width(round((0.9 - 0.891) / 0.7, 4), False)
    assert width([(1e-2, np.nan)]) is None


def test_neighbours_agree_with_a_plain_computation_and_ignore_shared_seed_effects(
    made: Panel, found: Fingerprint
) -> None:
    stacked = np.stack([one.values for one in made.entries])
    mine = found.entry.values
    # Reference: standard deviations of means over seeds, and a weighted mean square over strips.
    scale = stacked.mean(axis=2).std(axis=0, ddof=1)
    luck = (stacked - stacked.mean(axis=0)).var(axis=2, ddof=1).mean(axis=0)
    weights = np.log(1 + scale**2 / luck) / 2
    expected = {
        one.name: float(np.sqrt(np.average(((mine - one.values).mean(axis=1) / scale) ** 2, weights=weights)))
        for one in made.entries
    }
    assert {one.name: one.distance for one in found.neighbours} == pytest.approx(expected)
    assert found.neighbours[0].name == "c" == min(expected, key=lambda name: expected[name])
    squares = weights * ((mine - made.entry("c").values).mean(axis=1) / scale) ** 2
    assert found.neighbours[0].shares == pytest.approx(squares / squares.sum())
    first, second, third = (STRIPS[i].label for i in np.argsort(-squares)[:3])
    said = re.escape(f"this distance are {first} (..%), {second} (..%) and {third} (..%).").replace(r"\.\.%", r"\d+%")
    assert re.search(said, " ".join(one.text for one in sentences(found)))
    assert found.neighbours[0].nearest == 1.0
    assert sum(one.nearest for one in found.neighbours) == pytest.approx(1.0)
    harder = np.random.default_rng(1).normal(0, 50, (16, 10))
    moved = neighbours(mine + harder, stacked + harder, made.names)
    assert [one.name for one in moved] == [one.name for one in found.neighbours]
    assert [one.distance for one in moved] == pytest.approx([one.distance for one in found.neighbours])


def test_strips_without_values_are_left_out_of_distances(made: Panel) -> None:
    stacked = np.stack([one.values for one in made.entries])
    mine = made.entry("c").values.copy()
    mine[3:] = np.nan
    assert neighbours(mine, stacked, made.names) == []
    mine = made.entry("c").values.copy()
    mine[10] = np.nan
    first = neighbours(mine, stacked, made.names)[0]
    assert (first.name, first.distance, first.strips) == ("c", 0.0, 15)


def test_an_optimizer_without_values_does_not_change_the_weight_of_a_strip(made: Panel) -> None:
    stacked = np.stack([one.values for one in made.entries]) / 1000  # small values, like those of sharpness
    expected = information(stacked[:7])
    assert expected.min() > 1
    stacked[7] = np.nan
    assert information(stacked) == pytest.approx(expected)
    stacked[7, :, 3] = 0.001  # a single value has no variance over seeds but still counts among optimizers
    assert (information(stacked) > 1).all()


def test_distances_of_a_single_seed_do_not_depend_on_units(made: Panel) -> None:
    stacked = np.stack([one.values for one in made.entries])[:, :, :1]
    units = 10.0 ** np.arange(-8, 8)[:, None]
    plain, scaled = (neighbours(x[2] * 1.1, x, made.names) for x in (stacked, stacked * units))
    assert [one.distance for one in scaled] == pytest.approx([one.distance for one in plain])


def test_halves_of_seeds_match_only_if_optimizers_differ(made: Panel) -> None:
    stacked = np.stack([one.values for one in made.entries])
    even, odd = np.arange(10)[0::2], np.arange(10)[1::2]
    assert own_half_is_nearest(stacked, made.names, even, odd) == {name: name for name in made.names}
    alike = np.random.default_rng(2).normal(0, 1, stacked.shape)
    lost = own_half_is_nearest(alike, made.names, even, odd)
    assert sum(name == nearest for name, nearest in lost.items()) < len(lost)


def test_standardised_strips_have_mean_0_and_deviation_1(made: Panel) -> None:
    table = standardised(np.stack([one.values for one in made.entries]))
    assert table.mean(axis=0) == pytest.approx(np.zeros(16), abs=1e-12)
    assert table.std(axis=0, ddof=1) == pytest.approx(np.ones(16))


def test_verdicts_agree_with_scipy_and_holms_correction(made: Panel, found: Fingerprint) -> None:
    judged = found.judged["sgd"]
    p = [float(stats.wilcoxon(found.entry.values[i], made.entry("sgd").values[i]).pvalue) for i in range(16)]
    corrected = np.empty(16)
    order, running = np.argsort(p), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (16 - rank) * p[i]))
        corrected[i] = running
    assert [one.judgement.holm_p for one in judged] == pytest.approx(corrected.tolist())
    differing = [i for i in range(16) if corrected[i] <= 0.05]
    assert [i for i, one in enumerate(judged) if one.verdict in DIFFERENT | {Verdict.BELOW_MARGIN}] == differing
    assert differing


def test_an_optimizer_of_the_panel_is_identical_to_itself(made: Panel) -> None:
    found = fingerprint(made.entry("adamw"), made)
    assert (found.neighbours[0].name, found.neighbours[0].distance) == ("adamw", 0.0)
    assert all(one.identical and one.verdict is Verdict.EQUIVALENT for one in found.judged["adamw"])
    assert not any("contribute most" in one.text for one in sentences(found))
    assert "It is identical to adamw in all 16 strips." in [one.text for one in sentences(found)]


def test_sentences_and_verdicts_correspond(made: Panel, found: Fingerprint) -> None:
    for one in (found, *(fingerprint(each, made) for each in made.entries)):
        check_words(one)


def check_words(found: Fingerprint) -> None:
    """Check the words of a page against its table of verdicts."""
    said = sentences(found)
    for reference in found.references:
        about = [one for one in said if one.verdicts and one.verdicts[0].other == reference[0].other]
        mentioned = [verdict for one in about for verdict in one.verdicts]
        assert sorted(id(one) for one in mentioned) == sorted(id(one) for one in reference), "each verdict once"
    for one in said:
        for verdict in one.verdicts:
            strip, difference = verdict.strip, verdict.result.difference
            assert verdict.other in one.text
            if one.text.startswith("Compared with"):
                assert verdict.verdict in DIFFERENT
                assert difference is not None
                assert (strip.more if difference > 0 else strip.less) in one.text
                assert f"{abs(difference):.{strip.digits}f}" in one.text
            elif one.text.startswith("These seeds do not show"):
                assert verdict.verdict is Verdict.NO_EVIDENCE
                assert strip.label in one.text
            elif one.text.startswith("It cannot be compared"):
                assert verdict.verdict is Verdict.NOT_COMPARABLE
                assert strip.label in one.text
            else:
                assert verdict.verdict in (Verdict.EQUIVALENT, Verdict.BELOW_MARGIN)
                assert strip.label in one.text or re.search(r"in (all 16|\d+ of 16) strips", one.text)
    # A sentence without a verdict is about distances or about what was not learnt.
    for one in said:
        if not one.verdicts:
            assert re.match(r"The (nearest in|strips that)|Too few strips|On \w+ \(.+\), it ", one.text), one.text
    for strip in STRIPS:
        for phrase in (strip.more, strip.less):
            stated = [v for one in said if phrase in one.text for v in one.verdicts if v.strip is strip]
            assert not any(phrase in one.text for one in said) or stated, phrase


def test_an_experiment_that_was_not_learnt_has_no_value_and_no_verdict(made: Panel) -> None:
    slow = made.entry("c")
    trials = {**slow.trials, "permuted": dataclasses.replace(slow.trials["permuted"], learnt=np.full(10, 0.12))}
    found = fingerprint(dataclasses.replace(slow, name="slow", trials=trials), made)
    assert set(found.not_learnt) == {"permuted"}
    accuracy = "its test accuracy right after training on each task is 0.120, expected at least 0.520"
    assert f"has not learnt on 10 of 10 seeds: {accuracy}" in found.not_learnt["permuted"]
    for i, one in enumerate(found.standings):
        if one.strip.experiment == "permuted":
            assert one.centre is None
            assert all(reference[i].verdict is Verdict.NOT_COMPARABLE for reference in found.references)
        else:
            assert one.centre is not None
    text = " ".join(one.text for one in sentences(found))
    assert "forgets less" not in text
    assert "On permuted (three permutations of MNIST), it has not learnt" in text
    check_words(found)


def test_trials_above_the_target_have_no_values(made: Panel) -> None:
    some = made.entry("c")
    states = ("above_target",) * 6 + ("ok",) * 4
    trials = {**some.trials, "matched": dataclasses.replace(some.trials["matched"], states=states)}
    found = fingerprint(dataclasses.replace(some, name="some", trials=trials), made)
    assert found.not_learnt == {"matched": "did not reach the target training loss on 6 of 10 seeds"}
    one = next(one for one in found.standings if one.strip.experiment == "matched")
    assert (one.centre, one.n) == (None, 0)


def test_an_experiment_that_diverged_on_half_of_the_seeds_is_left_out(made: Panel) -> None:
    some = made.entry("c")
    states = ("diverged",) * 5 + ("ok",) * 5
    trials = {**some.trials, "permuted": dataclasses.replace(some.trials["permuted"], states=states)}
    found = fingerprint(dataclasses.replace(some, name="some", trials=trials), made)
    assert found.not_learnt == {"permuted": "diverged on 5 of 10 seeds"}
    elsewhere = sum(strip.experiment != "permuted" for strip in STRIPS)
    assert {one.strips for one in found.neighbours} <= {elsewhere}
    assert all(
        one.obstacle == "diverged on 5 of 10 seeds" for one in found.standings if one.strip.experiment == "permuted"
    )


def test_a_failed_trial_costs_only_its_own_pair(made: Panel) -> None:
    """A failed trial has no hash of its initial weights."""
    some = fingerprint(made.entry("c"), made).entry
    trials = {
        name: dataclasses.replace(one, states=("failed", *one.states[1:]), starts=("", *one.starts[1:]))
        for name, one in some.trials.items()
    }
    found = fingerprint(dataclasses.replace(some, name="some", trials=trials), made)
    assert all(one.verdict is not Verdict.NOT_COMPARABLE and one.result.n == 9 for one in found.judged["c"])
    assert not any("initial weights" in remark for remark in found.remarks)


def test_trials_with_other_initial_weights_are_not_comparable(made: Panel) -> None:
    other = made.entry("c")
    trials = {
        name: dataclasses.replace(one, starts=tuple(f"other {s}" for s in SEEDS)) for name, one in other.trials.items()
    }
    found = fingerprint(dataclasses.replace(other, name="other", trials=trials), made)
    assert all(one.verdict is Verdict.NOT_COMPARABLE for one in found.judged["sgd"])
    assert any(one.text.endswith("cosine, polar factor: initial weights differ.") for one in sentences(found))
    check_words(found)
    assert any("initial weights differ from the panel's" in remark for remark in found.remarks)


def test_three_seeds_give_no_verdicts_and_a_note(made: Panel) -> None:
    found = fingerprint(made.entry("c").on((0, 1, 2)), made)
    assert not found.has_verdicts
    assert found.neighbours[0].name == "c"
    assert "No verdicts: 3 seeds cannot show a difference over 16 strips; 10 can." in " ".join(wording.notes(found))
    assert "Compared with" not in " ".join(one.text for one in sentences(found))
    assert sentences(found)[0].text.startswith("The nearest in the panel, as far as 3 seeds can tell, is c (")
    assert all(one.interval is None for one in (*found.standings, *found.neighbours))
    assert "[" not in html.page(found).partition("Nearest in the panel")[2].partition("</table>")[0]


@pytest.mark.parametrize(("n", "legend"), [(3, "c"), (10, "c, 95% interval")])
def test_legends_mention_intervals_only_if_there_are_some(made: Panel, n: int, legend: str) -> None:
    found = fingerprint(made.entry("c").on(tuple(range(n))), made)
    axes = Figure().subplots()
    figure._draw(found, axes)
    drawn = axes.get_legend()
    assert drawn is not None
    assert legend in [text.get_text() for text in drawn.get_texts()]
    page = html.page(found)
    assert f'<i class="key own"></i>{legend}<' in page
    table = page.partition("Nearest in the panel")[2].partition("</table>")[0]
    assert [title in table for title in ("95% interval", "nearest in", "equal strips")] == [n == 10] * 3


def test_a_seed_outside_the_panel_is_refused(made: Panel) -> None:
    strange = dataclasses.replace(made.entry("c"), seeds=tuple(range(1, 11)))
    with pytest.raises(UsageError, match=r"c: expected seeds of the panel, 0 to 9, got 10"):
        fingerprint(strange, made)


def test_a_panel_survives_a_round_trip(made: Panel, tmp_path: Path) -> None:
    holes = made.entries[0].values.copy()
    holes[2, 3] = np.nan
    first = dataclasses.replace(made.entries[0], values=holes, width=Width(1.5, True))
    panel = dataclasses.replace(made, entries=(first, *made.entries[1:]))
    write(panel, tmp_path / "panel.parquet")
    again = read(tmp_path / "panel.parquet")
    for one, other in zip(panel.entries, again.entries, strict=True):
        assert np.array_equal(one.values, other.values, equal_nan=True)
        assert (one.name, one.seeds, one.width, one.settings) == (other.name, other.seeds, other.width, other.settings)
        for name in EXPERIMENTS:
            assert one.trials[name].starts == other.trials[name].starts
            assert np.array_equal(one.trials[name].learnt, other.trials[name].learnt, equal_nan=True)
    write(again, tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "panel.parquet").read_bytes()


def test_a_file_that_is_not_a_panel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "panel.parquet").write_text("no")
    with pytest.raises(StoreError, match=r"panel.parquet: cannot read the panel"):
        read(tmp_path / "panel.parquet")


def test_the_shipped_panel_belongs_to_the_shipped_suite() -> None:
    panel = shipped()
    suite = load_suite(resolve_suite_path(SUITE))
    assert panel.experiments == json.loads(json.dumps(experiments_of(suite)))
    # A protocol setting added in a later version must not make every run incomparable.
    assert not set(ADDED) & panel.experiments["experiments"]["permuted"]["protocol"].keys()
    assert panel.names == list(suite.optimizers)
    assert len(panel.names) >= 20
    assert list(panel.seeds) == list(suite.seeds) == list(SEEDS)
    import optbench.studies.fingerprint as package

    assert (Path(package.__file__).parent / FILE).stat().st_size <= 2 * 2**20
    for strip in STRIPS:
        taken = [metric.name for metric in suite.experiments[strip.experiment].metrics or ()]
        assert strip.metric in taken or METRICS[strip.metric].kind == "online"
        assert len(strip.label) <= terminal.LABEL
    values = np.stack([one.values for one in panel.entries])
    assert np.isfinite(values).mean() > 0.95


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon", "shampoo"])
def test_the_words_of_the_shipped_panel_agree_with_its_verdicts(name: str) -> None:
    found = fingerprint(shipped().entry(name), shipped())
    assert found.neighbours[0].name == name
    check_words(found)


def test_runs_of_another_protocol_are_refused(made: Panel) -> None:
    run = SimpleNamespace(id="mine", record={"metrics_version": 1})
    results: Any = SimpleNamespace(run=run, suite=load_suite(resolve_suite_path(SUITE)))
    panel = dataclasses.replace(made, experiments=experiments_of(results.suite))
    check(panel, results)
    experiments = json.loads(json.dumps(panel.experiments))
    experiments["experiments"]["pairs"]["protocol"]["batch_size"] = 64
    with pytest.raises(ComparisonError, match=r"they differ in experiments\.pairs\.protocol\.batch_size \(128, 64\)"):
        check(dataclasses.replace(panel, experiments=experiments), results)
    with pytest.raises(ComparisonError, match="their metrics have versions 1 and 2"):
        check(dataclasses.replace(panel, metrics_version=2), results)


def test_a_resumed_run_has_the_provenance_of_its_last_session(made: Panel) -> None:
    began, ended = {"torch": "2", "device": "cpu"}, {"torch": "3", "device": "cpu"}
    panel = dataclasses.replace(made, made=began)
    record = {"provenance": began, "resumed": [{"provenance": ended}], "status": "complete"}
    resumed: Any = SimpleNamespace(run=SimpleNamespace(record=record))
    assert remarks(panel, resumed) == ["The run used torch 3, the panel 2."]
    alike: Any = SimpleNamespace(run=SimpleNamespace(record={"provenance": began, "status": "complete"}))
    assert remarks(panel, alike) == []


class Page(HTMLParser):
    """A parser that collects the texts of a page and everything that a browser would fetch or execute."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.scripts = 0
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script" or any(name.startswith("on") for name, _ in attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.replace("\N{NO-BREAK SPACE}", " "))


def test_the_page_fetches_nothing_and_names_every_optimizer_on_every_strip(found: Fingerprint) -> None:
    text = html.page(dataclasses.replace(found, entry=dataclasses.replace(found.entry, name="<b>mine</b>")))
    page = Page()
    page.feed(text)
    assert page.scripts == 0
    assert page.links == ["data:,"]
    assert "url(" not in text
    assert len(text) < 2 * 2**20
    assert "<b>mine</b>" in "".join(page.texts)  # escaped, so shown as text
    strips = text.split('<div class="strip"')[1:]
    assert len(strips) == 16
    for one, shown in zip(found.standings, strips, strict=True):
        for tick in one.ticks:
            assert f"{tick.name}&nbsp;{tick.centre:.{one.strip.digits}f}" in shown
        assert shown.startswith(' tabindex="0"')


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_page_fits_the_width(found: Fingerprint, made: Panel, width: int) -> None:
    for one in (found, fingerprint(made.entry("c").on((0, 1, 2)), made)):
        console = Console(width=width, color_system=None)
        with console.capture() as captured:
            terminal.show(one, console)
        lines = captured.get().splitlines()
        assert max(map(len, lines)) <= width
        for standing in one.standings:
            line = next(line for line in lines if line.startswith(standing.strip.title + " "))
            assert "●" in line
            assert wording.value(standing) in line


def test_records_have_the_numbers_of_the_page(found: Fingerprint) -> None:
    record = json.loads(json.dumps(records.record(found), allow_nan=False))
    assert [row["strip"] for row in record["strips"]] == [strip.name for strip in STRIPS]
    for i, row in enumerate(record["strips"]):
        assert row["value"] == found.standings[i].centre
        assert row["sgd_verdict"] == str(found.judged["sgd"][i].verdict)
        assert row["panel"] == {tick.name: tick.centre for tick in found.standings[i].ticks}
    assert record["neighbours"][0]["optimizer"] == "c"
    assert record["words"] == [one.text for one in sentences(found)]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_saving_a_figure_twice_gives_the_same_bytes(found: Fingerprint, tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        figure.save(found, tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    assert (tmp_path / f"a.{suffix}").stat().st_size > 5000
