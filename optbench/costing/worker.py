"""`python -m optbench.costing.worker`: one job, as JSON, on standard input; its row, as a line, on standard output.

A process of its own: its peak of memory is that of one optimizer, and what a user's code does to it ends with it.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    # What a user's code prints must not get into the answer.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from optbench.costing.job import CostJob
    from optbench.costing.measure import measured

    told = json.load(sys.stdin)
    with answer:
        # The last line counts; one before it is what is known after the first step, should that be all.
        for row in measured(CostJob(**{**told, "threads": tuple(told["threads"])})):
            answer.write(f"{row.model_dump_json()}\n")
            answer.flush()


if __name__ == "__main__":
    main()
