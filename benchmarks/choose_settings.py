"""Chooses hyper-parameters from a tuning run by the rule that suites/continual.yaml states.

    python benchmarks/choose_settings.py runs/continual-tuning

For every experiment, model and optimizer: among the settings whose validation learning accuracy (mean over tasks, each
right after it was learnt) is within .03 of that optimizer's best, the one with the highest final average validation
accuracy. So a rate too small to learn does not win by not forgetting. Means are over the tuning seeds; a setting with
a diverged seed cannot be chosen. Test accuracies are not read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

WITHIN = 0.03
KEYS = ["experiment", "model", "optimizer", "variant"]


def table(run: Path) -> pd.DataFrame:
    """One row per setting: learning and final average validation accuracy, and how many seeds diverged."""
    rows = []
    for keys, setting in pd.read_parquet(run / "accuracy.parquet").groupby(KEYS, sort=False):
        learning, final = [], []
        for _, trial in setting.groupby("seed"):
            matrix = trial.pivot(index="after_task", columns="task", values="validation_accuracy").to_numpy(float)
            learning.append(np.mean([matrix[j + 1, j] for j in range(matrix.shape[1])]))
            final.append(matrix[-1].mean())
        rows.append((*keys, np.mean(learning), np.mean(final), int(np.isnan(final).sum()), len(final)))
    return pd.DataFrame(rows, columns=[*KEYS, "learning", "final", "diverged", "seeds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    settings = table(parser.parse_args().run)
    for keys, group in settings.groupby(KEYS[:-1], sort=False):
        group = group.reset_index(drop=True)
        learnt = group[group.learning >= group.learning.max() - WITHIN]
        chosen = learnt.final.idxmax()
        print("\n" + " / ".join(map(str, keys)))
        for i, row in group.iterrows():
            edge = " (at the edge of its grid)" if i in (0, len(group) - 1) else ""
            mark = f"  <- chosen{edge}" if i == chosen else "" if i in learnt.index else "  does not learn enough"
            trouble = f"  {row.diverged} of {row.seeds} seeds diverged" if row.diverged else ""
            print(f"  {row.variant:24} learning {row.learning:.4f}  final {row.final:.4f}{trouble}{mark}")


if __name__ == "__main__":
    main()
