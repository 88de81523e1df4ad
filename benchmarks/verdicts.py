"""Write the verdicts of a findings page from the runs that it reports, so that the page and the runs agree.

    python benchmarks/verdicts.py docs/plasticity.md --runs-dir RUNS [--check]

Markers in the page give the position of the table and the runs:

    <!-- verdicts permuted10 -->
    ... a table, which is replaced
    <!-- end verdicts -->

If several runs contain the same claim, its verdict comes from the last of them. `<!-- verdicts RUN | detectable -->`
adds the smallest effect that the seeds could have shown. With --check, the page is not changed, and the exit code is 1
if the page differs from its runs.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import numpy as np

from optbench.errors import StoreError
from optbench.report.claims import part_estimate, stated, verdict_cell
from optbench.report.numbers import decimals, fixed
from optbench.report.readings import part_label
from optbench.report.summary import summarise
from optbench.stats.claims import ClaimVerdict, JudgedClaim
from optbench.stats.power import ALPHA, corrected_for
from optbench.stats.results import read_results
from optbench.stats.signed_rank import detectable
from optbench.store import find_run, read_run

DETECTABLE = "detectable"
PLACE = re.compile(r"(<!-- verdicts (?P<runs>[^>]+?) -->\n).*?(<!-- end verdicts -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="+", type=Path)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    drifted = False
    for page in options.page:
        old = page.read_text(encoding="utf-8")
        if not PLACE.search(old):
            parser.error(f"{page}: expected a line '<!-- verdicts RUN -->', got none")
        try:
            new = PLACE.sub(lambda found: f"{found[1]}{_asked(found['runs'], options.runs_dir)}{found[3]}", old)
        except StoreError as error:
            parser.error(str(error))
        if new == old:
            continue
        drifted = True
        if options.check:
            print(f"{page}: differs from its runs; run this script without --check", file=sys.stderr)
        else:
            page.write_text(new, encoding="utf-8")
    return int(drifted and options.check)


def _asked(text: str, runs_dir: Path) -> str:
    runs, _, column = (part.strip() for part in text.partition("|"))
    if column not in ("", DETECTABLE):
        raise StoreError(f"verdicts {text}: expected '{DETECTABLE}' after '|', got '{column}'")
    return table(runs.split(), runs_dir, detectable_too=bool(column))


def table(runs: list[str], runs_dir: Path, *, detectable_too: bool = False) -> str:
    """Return a table with a row for each claim, in suite order.

    detectable_too: whether to add the smallest effect that the seeds could have shown.

    Raises:
        StoreError: a run cannot be read.
    """
    found: dict[str, str] = {}
    for name in runs:
        (run,) = summarise([read_results(read_run(find_run(name, runs_dir)))], ()).runs
        numbered = dict(enumerate(run.claims, start=1))
        for claim in run.claims:
            cells = [stated(claim), _verdict(claim, verdict_cell(claim, numbered).text), _differences(claim)]
            cells += [_detectable(claim)] if detectable_too else []
            found[claim.name] = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    heads = ["claim", "verdict", "difference [95% interval]", *(["could have shown"] if detectable_too else [])]
    return "".join([f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|\n", *found.values(), "\n"])


def _verdict(claim: JudgedClaim, text: str) -> str:
    if claim.verdict is ClaimVerdict.CONTRADICTED:
        return text.replace("contradicted", "**contradicted**", 1)
    if claim.verdict is ClaimVerdict.NO_EVIDENCE and len(claim.parts) == 1 and claim.parts[0].reason:
        return f"{text}: {claim.parts[0].reason}"
    return text


def _detectable(claim: JudgedClaim) -> str:
    """Return the smallest difference that seeds with this variation could have shown in Holm's first step."""
    family = corrected_for(claim.claim, len(claim.parts))
    parts = [
        (part_label(part), detectable(np.array(part.result.differences), 1 - ALPHA / family))
        for part in claim.parts
        if part.result.n
    ]
    said = [
        (where, "none" if size is None else fixed(size, decimals(claim.claim.primary.name))) for where, size in parts
    ]
    return "; ".join(f"{where}: {size}" if len(parts) > 1 else size for where, size in said)


def _differences(claim: JudgedClaim) -> str:
    """Return the estimate of each part, preceded by its label if there are several parts."""
    parts = [(part_label(part), part_estimate(claim, part)) for part in claim.parts]
    return "; ".join(f"{where}: {said}" if len(parts) > 1 else said for where, said in parts)


if __name__ == "__main__":
    sys.exit(main())
