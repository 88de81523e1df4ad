"""Measurements for the steps of `on_device.py`. Each step runs in a separate process with its own imports.

A step receives a `Finding` and adds its results to it. Every addition is written immediately, so that the results of a
step that is killed are kept.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import replace

ROOT = Path(__file__).resolve().parents[1]
MARGIN = 0.06
"""Share of a step's time limit that is reserved for finishing."""


@dataclass
class Finding:
    """The results of a step so far, and their file."""

    file: Path
    device: str
    tiny: bool
    """True in a rehearsal, which uses tiny sizes only to test that everything runs."""
    limit: float
    """Seconds after which the step is killed."""
    values: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    cut_off: str | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def on_cuda(self) -> bool:
        return self.device != "cpu"

    @property
    def deadline(self) -> float:
        """The value of `time.perf_counter` at which to stop measuring."""
        return self.started + self.limit * (1 - MARGIN)

    def value(self, name: str, value: object) -> None:
        self.values[name] = value
        self.write()

    def line(self, text: str) -> None:
        """Add lines to the readable table."""
        self.lines += text.splitlines() or [""]
        print(text, flush=True)
        self.write()

    def check(self, what: str, held: bool, found: object) -> None:
        """Record a check that must hold for the step to succeed, and the value found."""
        self.checks.append({"check": what, "held": bool(held), "found": str(found)})
        print(f"{'held' if held else 'FAILED'}: {what}: {found}", flush=True)
        self.write()

    def stop(self, why: str) -> None:
        """Record that time ran out before everything was measured."""
        self.cut_off = why
        self.write()

    def write(self) -> None:
        found = {"values": self.values, "lines": self.lines, "checks": self.checks, "cut_off": self.cut_off}
        replace(self.file, as_json({"step": self.file.stem, "status": "running"} | found))


def as_json(found: object) -> str:
    """Return strictly valid JSON: numbers that are not finite become null."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {str(key): plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else None
        return value if value is None or isinstance(value, (bool, int, str)) else str(value)

    return json.dumps(plain(found), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def machine(found: Finding) -> None:
    """Versions and hardware of the machine."""
    import importlib.metadata

    import torch

    import optbench

    def git(*words: str) -> str | None:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        return None

    packages = {d.name.lower(): d.version for d in importlib.metadata.distributions() if d.name}
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "processor": processor(),
        "memory, GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "torch": torch.__version__,
        "optbench": packages.get("optbench", "not installed"),
        "optbench is read from": str(Path(optbench.__file__).parent),
        "git commit": git("rev-parse", "HEAD"),
        "changed files": git("status", "--porcelain", "--untracked-files=no"),
    }
    facts |= {name: packages[name] for name in sorted(packages) if name in NOTED}
    if found.on_cuda:
        facts["CUDA of torch"] = torch.version.cuda
        facts["cuDNN"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # untyped in torch
        facts["TF32 in products"] = torch.backends.cuda.matmul.allow_tf32
        facts["devices"] = torch.cuda.device_count()
    for name, fact in facts.items():
        found.values[name] = fact
    found.line(f"{facts['processor']}, {facts['cores']} cores, {facts['memory, GiB']} GiB; Python {facts['python']}")
    found.line(f"torch {torch.__version__}, optbench {facts['optbench']} at {facts['git commit'] or 'no commit'}")
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    found.check("torch is 2.9 or newer", release >= (2, 9), torch.__version__)
    ours = Path(optbench.__file__).is_relative_to(ROOT)
    found.check("optbench is imported from this checkout", ours, optbench.__file__)
    if not found.on_cuda:
        return
    available = torch.cuda.is_available() and (torch.device(found.device).index or 0) < torch.cuda.device_count()
    found.values["found"] = available
    found.check(f"torch finds {found.device}", available, available or f"no; torch {torch.__version__}")
    if available:
        described = torch.cuda.get_device_properties(torch.device(found.device))
        free, total = torch.cuda.mem_get_info(torch.device(found.device))
        found.values |= {"device": described.name, "capability": f"{described.major}.{described.minor}"}
        found.values |= {"multiprocessors": described.multi_processor_count}
        found.values |= {"device memory, GiB": total / 2**30, "free, GiB": free / 2**30}
        found.line(f"{described.name}, {total / 2**30:.0f} GiB ({free / 2**30:.0f} free), CUDA {torch.version.cuda}")
        a = torch.randn(64, 64, device=found.device)
        apart = float((a @ a.mT - (a.cpu() @ a.cpu().mT).to(found.device)).abs().max())
        found.check("a matrix product agrees with the CPU's to within 1e-3", apart < 1e-3, f"{apart:.1e} apart")


NOTED = {"torchvision", "numpy", "scipy", "pandas", "pyarrow", "pydantic", "pytest", "psutil", "pytorch-optimizer"}
"""Packages whose versions are recorded."""


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def tests(found: Finding) -> None:
    """Tests marked `first`: those for CUDA, or their CPU variants if the device is a CPU."""
    import pytest

    class Plugin:
        """Sort the tests by rank, record each as it ends, and stop when time runs out."""

        def __init__(self) -> None:
            self.planned = 0
            self.outcomes: dict[str, str] = {}

        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            items.sort(key=lambda item: max(mark.args[0] for mark in item.iter_markers("first")))
            self.planned = len(items)

        def pytest_collectreport(self, report: pytest.CollectReport) -> None:
            if report.failed:
                self.note(report.nodeid, "failed", str(report.longrepr).splitlines()[-1])

        def pytest_runtest_logstart(self, nodeid: str) -> None:
            found.value("running", nodeid)

        def pytest_runtest_teardown(self, item: pytest.Item) -> None:
            if time.perf_counter() > found.deadline:
                item.session.shouldstop = "time ran out"

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                self.note(report.nodeid, "failed", getattr(crash, "message", str(report.longrepr)), report.duration)
            elif report.skipped and isinstance(report.longrepr, tuple):
                self.note(report.nodeid, "skipped", report.longrepr[2], report.duration)
            elif report.when == "call":
                self.note(report.nodeid, "passed", "", report.duration)

        def note(self, name: str, outcome: str, reason: str, seconds: float = 0.0) -> None:
            self.outcomes[name] = outcome
            found.values["outcomes"] = self.outcomes
            first = (reason.splitlines() or [""])[0]
            found.line(f"{outcome:8}{seconds:7.2f} s  {name}{': ' if first else ''}{first}")

    plugin = Plugin()
    # Only files that contain such tests, because collecting all files takes a while.
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.first(" in file.read_text()]
    marked = "first and cuda" if found.on_cuda else "first and not cuda"
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(ROOT), "-m", marked, *files]
    code = pytest.main(words, plugins=[plugin])
    found.values.pop("running", None)
    counts = {outcome: list(plugin.outcomes.values()).count(outcome) for outcome in ("passed", "skipped", "failed")}
    for outcome, count in counts.items():
        found.value(outcome, count)
    found.line(f"{', '.join(f'{count} {outcome}' for outcome, count in counts.items())} of {plugin.planned}")
    found.check("tests ran, and none failed", counts["passed"] > 0 and not counts["failed"], counts | {"exit": code})
    if len(plugin.outcomes) < plugin.planned:
        found.stop(f"{len(plugin.outcomes)} of {plugin.planned} tests ran")


CLOSE = 0.01
"""Largest acceptable mean difference between an optimizer's accuracies on two devices in `smoke` (500 test examples). A
different order of summation alone does not change any accuracy."""


def smoke(found: Finding) -> None:
    """`smoke` on the device and on the CPU: the same initial weights and nearly the same results."""
    import suite

    import optbench

    words = ["smoke", "--seeds", "1" if found.tiny else "2"]
    if found.tiny:
        words += ["--set", "experiments.permuted-mnist.protocol.max_steps=5"]
        words += ["--set", "experiments.digit-pairs.protocol.max_steps=5"]
    runs = []
    for place, device in (("here", found.device), ("cpu", "cpu")):
        folder = run_folder(found, f"smoke-{place}")
        left = found.deadline - time.perf_counter() - suite.GRACE
        ran = suite.measured([*words, "--device", device], folder, on_device=device != "cpu", limit=left)
        shutil.rmtree(folder / "measured" / "checkpoints", ignore_errors=True)
        found.line(f"smoke, --device {device}: {suite.headline(ran)}")
        found.value(f"seconds, {place}", ran.seconds)
        if ran.code == INTERRUPTED:
            found.stop(f"smoke with --device {device} was interrupted after {ran.seconds:.0f} s")
            return
        found.check(f"optbench run smoke --device {device} ends with 0", ran.code == 0, ran.code)
        if ran.code not in suite.FINISHED:
            return
        runs.append(optbench.read_run(folder / "measured"))
    there, here = (run.table("trials", controls=True).set_index("trial") for run in runs)
    found.check("the same trials", set(there.index) == set(here.index), f"{len(there)} and {len(here)}")
    both = there.join(here, lsuffix="", rsuffix="_cpu", how="inner")
    same = (both["init_hash"] == both["init_hash_cpu"]).sum()
    found.check("bit-identical initial weights", same == len(both) > 0, f"{same} of {len(both)}")
    same = (both["status"] == both["status_cpu"]).sum()
    found.check("the trials have the same status", same == len(both) > 0, f"{same} of {len(both)}")
    notes = both["note"].dropna()
    for note in notes.unique():
        found.line(f"note of {(notes == note).sum()} trials: {note}")

    places = ["trial", "experiment", "optimizer", "after_task", "task"]
    accuracy = [run.table("accuracy", controls=True).set_index(places)["accuracy"] for run in runs]
    apart = (accuracy[0] - accuracy[1]).abs().groupby(["experiment", "optimizer"]).agg(["mean", "max"])
    for one in apart.reset_index().to_dict("records"):
        what = f"{one['experiment']}, {one['optimizer']}: accuracies are within {CLOSE} of the CPU's on average"
        found.check(what, one["mean"] <= CLOSE, f"mean {one['mean']:.4f}, at most {one['max']:.4f}")

    keys = ["trial", "experiment", "optimizer", "metric"]
    there, here = (run.values(controls=True).set_index(keys)[["value"]] for run in runs)
    values = there.join(here, rsuffix="_cpu").assign(apart=lambda both: both["value"] - both["value_cpu"])
    values = values.assign(largest=values["apart"].abs())
    of = values.groupby(keys[1:]).agg({"value": "mean", "value_cpu": "mean", "apart": "mean", "largest": "max"})
    of = of[of.index.isin(["average_accuracy", "forgetting", "effective_rank", "hoyer"], level="metric")].reset_index()
    found.line("differences from the CPU, means over trials:")
    found.line(of.to_string(index=False, float_format=lambda value: f"{value:.4f}"))
    found.value("differences", of.to_dict("records"))


INTERRUPTED = 130


def run_folder(found: Finding, name: str) -> Path:
    """Return an empty folder for a run."""
    folder = found.file.parent / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def throughput(found: Finding) -> None:
    """Member-steps per second of the engine, loop and floor, the most important cohorts first."""
    import throughput as speed

    names = tuple(name for name in speed.ON_CUDA if name != "unrecorded") if found.on_cuda else speed.ON_CPU
    processes = 1 if found.on_cuda or found.tiny else len(os.sched_getaffinity(0))
    rounds, seconds = (1, 0.01) if found.tiny else (3, 0.25)
    every = list(speed.SETTINGS)
    if found.tiny:
        plan = [(optimizer, members) for members in (2, 1) for optimizer in ("sgd", "adamw")]
    elif not found.on_cuda:  # on a CPU every member has its own data
        plan = [(optimizer, members) for members in (10, 1, 30) for optimizer in every]
    else:
        plan = [(optimizer, 100) for optimizer in every]
        plan += [("sgd", 1000), ("adamw", 1000)]
        plan += [(optimizer, members) for members in (10, 1) for optimizer in every]
        plan += [(optimizer, 1000) for optimizer in every[2:]]
    columns = [(name, width) for name, width in speed.COLUMNS if name != "unrecorded"]
    rows: list[dict[str, Any]] = []
    found.values["cohorts"] = rows
    found.line(f"{'optimizer':10}{'members':>8}" + "".join(f"{name:>{width}}" for name, width in columns))
    late: list[str] = []
    raised: list[str] = []
    with speed.Crew(names, processes, found.device) as crew:
        crew.start()
        for i, (optimizer, members) in enumerate(plan):
            left = found.deadline - time.perf_counter()
            if left <= 0:
                late.append(f"{len(plan) - i} of {len(plan)} cohorts not begun")
                break
            # Three times the cohort's share of the remaining time, and at least 45 s for cohorts with aims.
            until = time.perf_counter() + min(left, max(3 * left / (len(plan) - i), 45 if members == 100 else 0))
            slow = found.on_cuda and optimizer in ("shampoo", "newton")
            one = speed.measured(
                crew,
                optimizer,
                members,
                rounds,
                seconds,
                deadline=until,
                # The loop's speed does not depend on the number of members, and Shampoo's loop is the slowest part.
                skip=("loop",) if slow and members != 100 else (),
                warm_up=3 * speed.REFRESH if slow else speed.WARM_UP,
            )
            cohort = f"{optimizer}, {members} members"
            late += [f"{cohort}, {name} late" for name, reason in one.missing.items() if reason == speed.LATE]
            raised += [f"{cohort}, {name}: {reason}" for name, reason in one.missing.items() if reason != speed.LATE]
            for name, cell in (("engine", one.speeds.get("engine")), ("engine/loop", one.ratios("loop"))):
                if cell:
                    found.values[f"{cohort}, {name}"] = sorted(cell)[len(cell) // 2]
            rows.append(
                {"optimizer": optimizer, "members": members, "peak bytes": one.peak, "not measured": dict(one.missing)}
                | {name: list(values) for name, values in one.speeds.items()}
            )
            found.line(speed.line(one, columns))
    found.check("no variant raises an exception", not raised, "; ".join(raised) or f"{len(rows)} cohorts")
    if late:
        found.stop("; ".join(late))


def roots(found: Finding) -> None:
    """Ways to compute Shampoo's inverse roots."""
    import roots as ways
    import torch

    torch.set_num_threads(1)
    # Two seeds are enough; further members are copies of them, which take the same time.
    trained = ways.factors_in_training(1 if found.tiny else 2)
    plan = [(784, 10), (100, 10), (100, 100), (784, 1), (10, 10), (10, 100), (100, 1), (10, 1), (784, 100)]
    if found.tiny:
        plan = [(100, 1), (10, 2)]
    elif not found.on_cuda:  # on a CPU the products alone take a minute for ten members
        plan = [(100, 10), (784, 1), (10, 10), (100, 1), (10, 1)]
    for n, tensors in trained.items():
        _, factors, gradients = tensors
        there = ways.by_eigh(factors.to(found.device), torch.float64).cpu() @ gradients
        apart = ways.distance(there, ways.by_eigh(factors, torch.float64) @ gradients)
        found.check(f"side {n}: eigh in float64 agrees with the CPU's to within 1e-8", apart < 1e-8, f"{apart:.1e}")
    rows: list[dict[str, Any]] = []
    found.values["ways"] = rows
    found.line(ways.HEADING)
    taken: dict[tuple[int, int], float] = {}
    worst = {"newton float64": 0.0, "newton float32": 0.0, "eigh float32": 0.0}
    for i, (n, members) in enumerate(plan):
        left = found.deadline - time.perf_counter()
        if left <= taken.get((n, members // 10), 0.0) * 10:
            found.stop(f"{i} of {len(plan)} stacks measured")
            break
        given = tuple(ways.spread(x, members).to(found.device) for x in trained[n])
        started = time.perf_counter()
        for one in ways.measured(n, members, given, 1 if found.tiny else 3, found.deadline):
            rows.append(vars(one))
            if one.way in worst:
                worst[one.way] = max(worst[one.way], one.error)
            found.line(ways.line(one))
        taken[n, members] = time.perf_counter() - started
    for way, error in worst.items():
        bound = 1e-8 if "64" in way else 1e-2
        found.check(f"{way}: updates within {bound:g} of the exact ones", error < bound, f"{error:.1e}")


def continual(found: Finding) -> None:
    """The complete suite `continual` with 10 seeds: time and peak memory, or the number of trials finished in time."""
    import suite

    import optbench
    from optbench.plan import trials

    words = ["continual", "--device", found.device, "--seeds", "1" if found.tiny else "10"]
    if found.tiny:
        few = {"max_steps": 3, "train_examples": 1500, "validation_examples": 200, "test_examples": 200}
        for experiment in ("permuted-mnist", "digit-pairs"):
            words += [f"--set=experiments.{experiment}.protocol.{key}={value}" for key, value in few.items()]
    folder = run_folder(found, "continual")
    looked = 0.0

    def look(seconds: float) -> None:
        nonlocal looked
        if seconds > looked + 10:
            looked = seconds
            found.values["trials so far"] = len(suite.trials_in(folder / "measured"))
            found.value("seconds so far", seconds)

    left = found.deadline - time.perf_counter() - suite.GRACE
    ran = suite.measured(words, folder, on_device=found.on_cuda, limit=left, look=look)
    shutil.rmtree(folder / "measured" / "checkpoints", ignore_errors=True)
    for name in ("trials so far", "seconds so far"):
        found.values.pop(name, None)
    found.values |= {"peak host bytes": ran.host_bytes, "peak device bytes": ran.device_bytes}
    found.values |= {"processor seconds": ran.processor_seconds, "trials": len(ran.trials)}
    found.line(suite.headline(ran))
    if len(ran.trials):
        found.line(suite.by_optimizer(ran.trials).to_string(float_format=lambda value: f"{value:.1f}"))
    if ran.code == INTERRUPTED:
        settled = folder / "measured" / "suite.yaml"
        planned = len(trials(optbench.load_suite(settled))) if settled.exists() else "an unknown number of"
        found.value("seconds, more than", left)
        found.stop(f"{len(ran.trials)} of {planned} trials in {left:.0f} s")
        return
    found.check("optbench run continual ends with 0", ran.code == 0, ran.code)
    if ran.code in suite.FINISHED:
        found.value("seconds", ran.seconds)


def hangs(found: Finding) -> None:
    """Rehearsal only: hangs, with a child in another session; both ignore SIGTERM."""
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
    child = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    found.value("processes", [os.getpid(), child.pid])
    time.sleep(1000)


def fails(found: Finding) -> None:
    """Rehearsal only: raises an exception."""
    found.value("before", "kept")
    raise RuntimeError("this step fails on purpose")


STEPS: dict[str, Callable[[Finding], None]] = {
    work.__name__: work for work in (machine, tests, smoke, throughput, roots, continual, hangs, fails)
}
