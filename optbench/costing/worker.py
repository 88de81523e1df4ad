"""`python -m optbench.costing.worker`: read a job as JSON from standard input, and write its rows to standard output.

Each job runs in a separate process, so that the peak memory is that of a single optimizer, and a user's code cannot
affect the measurements of other optimizers.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    # output printed by a user's code must not be mixed with the result
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from optbench.costing.job import CostJob
    from optbench.costing.measure import measured

    told = json.load(sys.stdin)
    with answer:
        # The last line is final; an earlier one preserves the results of the first step in case of a later crash.
        for row in measured(CostJob(**{**told, "threads": tuple(told["threads"])})):
            answer.write(f"{row.model_dump_json()}\n")
            answer.flush()


if __name__ == "__main__":
    main()
