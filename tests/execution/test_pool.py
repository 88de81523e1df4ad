"""Workers and what they are given."""

from __future__ import annotations

from pathlib import Path

from optbench.execution.messages import Finished, Job, Train
from optbench.execution.pool import Pool
from optbench.execution.schedule import make_plan, spread
from tests.conftest import small_suite


def test_a_worker_has_its_next_unit_while_what_it_found_is_written(tmp_path: Path) -> None:
    plan = make_plan(small_suite({"sgd": {"target": "sgd"}, "adam": {"target": "adam"}}, seeds=1, train_examples=64))
    units = [Train(cohort, {}) for cohort in spread(plan, 1, 8)]
    pool = Pool(["cpu"])
    ended: list[str] = []
    try:
        for event in pool.train(units, Job(plan.suite, None, tmp_path, {})):
            if isinstance(event, Finished):
                ended.append(event.cohort.id)
                (worker,) = pool._workers
                assert worker.unit == (units[1] if len(ended) == 1 else None)
    finally:
        pool.close()
    assert ended == [unit.cohort.id for unit in units]
    assert len(ended) == 2
