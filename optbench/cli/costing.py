"""`optbench cost`: what optimizers take, measured one process each, in the format that is asked for."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from optbench.cli.output import deliver, say
from optbench.costing import memory
from optbench.costing.contenders import Contender, chosen
from optbench.costing.document import cost_report
from optbench.costing.result import CostResult
from optbench.costing.session import Plan, measure
from optbench.costing.sizes import SIZES
from optbench.errors import NothingMeasuredError, UsageError, unknown
from optbench.report.formats import choose_format

DONE, SOME_FAILED = 0, 3
DEFAULT_SIZES = ("tiny", "small")


@dataclass(frozen=True)
class Request:
    """The options of `optbench cost`, as they were given."""

    optimizers: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    device: str = "auto"
    threads: str | None = None
    batch: int | None = None
    steps: int = 20
    seconds: float = 20.0
    warm_up: int = 50
    timeout: float = 1800.0
    memory: float | None = None
    runs_dir: Path = Path("runs")
    format: str | None = None
    output: str | None = None
    quiet: bool = False


def measure_cost(request: Request) -> int:
    """Measure, save and show; the exit code, 3 where an optimizer failed.

    Raises:
        OptbenchError: the request or the device does not allow it, or nothing was measured; what was is saved.
    """
    form = choose_format(request.format, request.output)
    contenders = tuple(chosen(request.optimizers, request.settings))
    for size in request.sizes:
        if size not in SIZES:
            raise UsageError(f"--size: {unknown('size', size, SIZES)}")
    # Now that nothing is wrong with the words: torch takes seconds to import.
    from optbench.engine.device import accelerators, cpu_capability, resolve, settle
    from optbench.store.provenance import provenance

    device = resolve(request.device)
    if device.type == "mps":
        raise UsageError(
            "--device mps: expected cpu or cuda: neither time nor memory of a Metal device can be read here"
        )
    contenders = _usable(contenders, named=bool(request.optimizers))
    if device.type == "cuda":
        import torch

        settle(device)
        total = torch.cuda.mem_get_info(device)[0]
    else:
        total = memory.available()
    limit = round(request.memory * 2**30) if request.memory is not None else round(memory.SHARE * total)
    plan = Plan(
        contenders=contenders,
        sizes=tuple(dict.fromkeys(request.sizes)) or DEFAULT_SIZES,
        threads=_threads(request.threads) if device.type == "cpu" else (1,),
        device=str(device),
        steps=max(2, request.steps),
        seconds=request.seconds,
        timeout=request.timeout,
        limit=limit,
        warm_up=request.warm_up,
        batch=request.batch,
    )
    about = provenance(str(device), accelerators(), cpu_capability(), 1)
    name = f"cost-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    file = request.runs_dir / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)

    def told(what: str, number: int, of: int) -> None:
        if not request.quiet:
            say(f"optbench: {what} ({number} of {of})")

    try:
        result = measure(plan, file, about, ("optbench", *sys.argv[1:]), told)
    except KeyboardInterrupt:
        if file.exists():
            say(f"optbench: what was measured is in {file}")
        raise
    if not request.quiet:
        say(f"optbench: saved to {file}")
    deliver(cost_report([(name, result)]), form, request.output)
    return _code(result, file)


def _code(result: CostResult, file: Path) -> int:
    if not any(row.status == "ok" for row in result.rows):
        raise NothingMeasuredError(f"nothing was measured; why stands in {file}")
    return SOME_FAILED if any(row.status == "failed" for row in result.rows) else DONE


def _usable(contenders: Sequence[Contender], *, named: bool) -> tuple[Contender, ...]:
    """Those whose code is there and takes their settings. Of the default ones, those of a missing extra are left out.

    Raises:
        OptimizerError: one that was named cannot be loaded, or does not take its settings.
    """
    from optbench.errors import OptimizerError
    from optbench.optimizers.load import check_arguments
    from optbench.optimizers.registry import complete

    found = []
    for one in contenders:
        try:
            check_arguments(one.target, complete(one.target, one.settings))
        except OptimizerError as error:
            if named or "needs the extra" not in str(error):
                raise
            say(f"optbench: {one.name} is left out: {error}")
            continue
        found.append(one)
    return tuple(found)


def _threads(text: str | None) -> tuple[int, ...]:
    """`1,2`; without a text one, and as many as there are cores."""
    from optbench.engine.device import cores

    if text is None:
        return tuple(dict.fromkeys((1, cores())))
    numbers = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,4}", part) and int(part) for part in numbers):
        raise UsageError(f"--threads {text}: expected numbers of at least 1, as in 1,{max(2, cores())}")
    return tuple(dict.fromkeys(map(int, numbers)))
