"""Results of a run in memory: adding cohorts agrees with a slow reference and does not copy earlier rows."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from optbench.plan import Trial
from optbench.store.gathered import Gathered
from optbench.store.tables import ALL_TABLES, AccuracyRow, Row, TrialRow, arrow_table

EMPTY = {name: arrow_table(row_type, []) for name, row_type in ALL_TABLES.items()}
STATUSES = ("ok", "diverged", "failed")
Cohort = list[tuple[int, str, int]]
"""Number, status and number of rows in `accuracy` of each trial."""


def trial(number: int) -> Trial:
    return Trial(f"t{number}", "e", "m", "o", "default", number, "eval", "sgd", {})


def tables(cohort: Cohort, round_: int) -> dict[str, pa.Table]:
    """Return the tables of a cohort. round_: distinguishes its rows from earlier ones of the same trials."""
    rows: dict[str, list[tuple[Trial, Row]]] = {name: [] for name in ALL_TABLES}
    for number, status, scores in cohort:
        ending = TrialRow(status, None, None, 1, 1, 1, "cpu", "{}", "0", 0, 0, 0, f"{number}.{round_}", 0, None)
        rows["trials"].append((trial(number), ending))
        rows["accuracy"] += [(trial(number), AccuracyRow(i, 1, round_, 0.0, 1, 0.0, 0.0)) for i in range(scores)]
    return {name: arrow_table(ALL_TABLES[name], found) if found else EMPTY[name] for name, found in rows.items()}


def slowly(before: dict[str, pa.Table], found: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Add a cohort row by row, as a slow reference."""
    again = set(found["trials"]["trial"].to_pylist())
    return {
        name: pa.Table.from_pylist(
            [row for row in table.to_pylist() if row["trial"] not in again] + found[name].to_pylist(), table.schema
        )
        if name in ("trials", "accuracy")
        else table
        for name, table in before.items()
    }


cohort = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(STATUSES), st.integers(0, 2)),
    min_size=1,
    max_size=4,
    unique_by=lambda one: one[0],
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(cohort, st.booleans()), min_size=1, max_size=6))
def test_adding_cohorts_replaces_their_trials_and_keeps_all_other_rows_in_order(
    cohorts: list[tuple[Cohort, bool]],
) -> None:
    expected = tables([], 0)
    gathered = Gathered(expected)
    for i, (found, is_read) in enumerate(cohorts):
        expected = slowly(expected, tables(found, i))
        gathered.add(tables(found, i))
        if is_read:  # reading in between joins the added rows
            assert gathered.table("accuracy").to_pylist() == expected["accuracy"].to_pylist()
    for name, table in expected.items():
        assert gathered.table(name).to_pylist() == table.to_pylist()
        assert gathered.table(name).schema.equals(table.schema, check_metadata=True)
    endings = {row["trial"]: (row["status"], row["checkpoint"]) for row in expected["trials"].to_pylist()}
    assert gathered.endings == endings
    for number in range(10):
        assert gathered.is_done(f"t{number}") == (endings.get(f"t{number}", ("failed",))[0] != "failed")


def test_adding_a_cohort_of_new_trials_does_not_copy_earlier_rows() -> None:
    gathered = Gathered(tables([(0, "ok", 2)], 0))
    before = {name: gathered.table(name) for name in ALL_TABLES}
    for number in range(1, 20):
        gathered.add(tables([(number, "ok", 2)], 0))
        assert all(gathered._joined[name] is before[name] for name in ALL_TABLES)
    assert gathered.table("trials").num_rows == 20
    assert gathered.table("accuracy")["trial"].num_chunks == 1, "thousands of small chunks take a lot of memory"
