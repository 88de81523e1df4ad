"""`optbench cost`: measure the cost of optimizers, each in a separate process."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from optbench.cli.output import deliver, say
from optbench.costing import memory
from optbench.costing.contenders import Contender
from optbench.costing.document import cost_report
from optbench.costing.result import CostResult
from optbench.costing.session import CostPlan, measure
from optbench.costing.sizes import SIZES
from optbench.errors import NothingMeasuredError, UsageError, unknown

DONE, SOME_FAILED = 0, 3
DEFAULT_SIZES = ("tiny", "small")


def known_sizes(sizes: Sequence[str]) -> tuple[str, ...]:
    """Return the sizes without duplicates (the defaults if empty); raise UsageError if a size is unknown."""
    for size in sizes:
        if size not in SIZES:
            raise UsageError(f"--size: {unknown('size', size, SIZES)}")
    return tuple(dict.fromkeys(sizes)) or DEFAULT_SIZES


def device_and_memory(text: str) -> tuple[str, int]:
    """Return the device that `--device` names, and the number of bytes that may be allocated there by default.

    Raises:
        OptbenchError: there is no such device, or it does not support measurements.
    """
    from optbench.engine.device import resolve, settle

    device = resolve(text)
    if device.type == "mps":
        raise UsageError(
            "--device mps: expected cpu or cuda, because time and memory cannot be measured on a Metal device"
        )
    if device.type == "cuda":
        import torch

        settle(device)
        total = torch.cuda.mem_get_info(device)[0]
    else:
        total = memory.available()
    return str(device), round(memory.SHARE * total)


def measure_and_show(plan: CostPlan, folder: Path, form: str, output: str | None, *, quiet: bool) -> int:
    """Carry out a plan, save the result in `folder` and print it; return the exit code, 3 if an optimizer failed.

    Raises:
        OptbenchError: nothing was measured, for reasons given in the file; or the file cannot be written.
    """
    from optbench.engine.device import accelerators, cpu_capability
    from optbench.store.provenance import provenance

    about = provenance(plan.device, accelerators(), cpu_capability(), 1)
    name = f"cost-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    file = folder / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)

    def told(what: str, number: int, of: int) -> None:
        if not quiet:
            say(f"optbench: {what} ({number} of {of})")

    try:
        result = measure(plan, file, about, ("optbench", *sys.argv[1:]), told)
    except KeyboardInterrupt:
        if file.exists():
            say(f"optbench: the measurements so far are in {file}")
        raise
    if not quiet:
        say(f"optbench: saved to {file}")
    deliver(cost_report([(name, result)]), form, output)
    return _code(result, file)


def _code(result: CostResult, file: Path) -> int:
    if not any(row.status == "ok" for row in result.rows):
        raise NothingMeasuredError(f"nothing was measured; the reasons are in {file}")
    return SOME_FAILED if any(row.status == "failed" for row in result.rows) else DONE


def usable(contenders: Sequence[Contender], *, all_needed: bool) -> tuple[Contender, ...]:
    """Return the optimizers that can be loaded; those that need a missing extra are left out unless all are required.

    Raises:
        OptimizerError: an optimizer cannot be loaded, or rejects its settings.
    """
    from optbench.errors import OptimizerError
    from optbench.optimizers.load import check_arguments
    from optbench.optimizers.registry import complete

    found = []
    for one in contenders:
        try:
            check_arguments(one.target, complete(one.target, one.settings))
        except OptimizerError as error:
            if all_needed or "needs the extra" not in str(error):
                raise
            say(f"optbench: {one.name} is left out: {error}")
            continue
        found.append(one)
    return tuple(found)


def thread_counts(text: str | None) -> tuple[int, ...]:
    """Parse thread counts such as `1,2`, dropping duplicates; for None, return 1 and the number of cores."""
    from optbench.engine.device import cores

    if text is None:
        return tuple(dict.fromkeys((1, cores())))
    numbers = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,4}", part) and int(part) for part in numbers):
        raise UsageError(f"--threads {text}: expected numbers from 1 to 9999, as in 1,{max(2, cores())}")
    return tuple(dict.fromkeys(map(int, numbers)))
