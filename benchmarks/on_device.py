"""Run all measurements for a GPU in one call of at most 8 minutes.

    python benchmarks/on_device.py [--device cuda] [--out FOLDER] [--budget 480] [--only STEP]...
    python benchmarks/on_device.py --device cpu --rehearse      # tiny sizes on a CPU, to test the script itself
    python benchmarks/on_device.py --list

The steps run in sequence, the most important first, each in a separate process. A step that does not finish within its
limit is killed together with all processes that it started, and the next step begins. The last step gets the rest of
the budget. Every step writes its results as it proceeds, so FOLDER contains everything measured so far, however the
script ends:

- `STEP.json`: values, checks, aims and how the step ended; `STEP.log`: everything it printed;
- `summary.json`: all steps and the verdicts on the aims, rewritten after each step;
- `table.md`: the same as a readable table, for pasting into RESULTS.md;
- `runs/`: the runs of `smoke` and `continual`, without weights.

With `--only` and the same folder, a step is measured again and the others are kept.

Exit code 0: all steps completed and their checks held. 1: a check failed, or a step did not complete (it raised an
exception, was killed, was cut off, or lacks a package). 2: usage error. 128 + n: ended by signal n. A missed aim
does not affect the exit code. The script requires torch >= 2.9 and optbench's other dependencies, and pytest and
hypothesis for `tests`. Without psutil, memory on the host is not measured; without pytorch-optimizer, Shampoo is not
compared with a loop. optbench does not have to be installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from device_steps import ROOT, STEPS, Finding, as_json
from processes import adopt_orphans, descendants, end_descendants, end_with, replace

BUDGET = 480.0
"""Seconds for all steps."""
LAST = 3.0
"""Seconds of the budget that are reserved for writing the summary."""
SHORTEST = 5.0
"""Minimum number of seconds that must remain for a step to start."""
OPTBENCH: tuple[str, ...] = ("torch", "torchvision", "numpy", "scipy", "pandas", "pyarrow", "typer", "rich", "pydantic")
OPTBENCH += ("yaml", "cloudpickle", "safetensors", "matplotlib")
"""Modules of the packages that optbench requires."""


@dataclass(frozen=True)
class Step:
    """A set of measurements made in one process."""

    name: str
    limit: float
    """Time limit in seconds; shortened if less of the budget remains."""
    tiny_limit: float
    """Time limit in a rehearsal, in seconds; it allows for a busy machine."""
    needs: tuple[str, ...] = OPTBENCH
    """Modules without which the step cannot run."""
    wants: tuple[str, ...] = ()
    """Modules without which the step measures less."""
    ends: str = "done"
    """The status with which the step should end."""

    @property
    def about(self) -> str:
        return (STEPS[self.name].__doc__ or "").splitlines()[0]


REST = float("inf")
ALL = (
    Step("machine", 40, 90, needs=("torch",)),
    Step("tests", 100, 180, needs=(*OPTBENCH, "pytest", "hypothesis"), wants=("pytorch_optimizer",)),
    Step("smoke", 65, 200, wants=("psutil",)),
    Step("throughput", 120, 180, wants=("pytorch_optimizer",)),
    Step("roots", 35, 120),
    Step("continual", REST, 200, wants=("psutil",)),
)
REHEARSED = (
    Step("hangs", 4, 4, needs=(), ends="killed"),
    Step("fails", 10, 10, needs=(), ends="failed"),
)
"""Steps that run only in a rehearsal, after its first step."""
EVERY = {step.name: step for step in (ALL[0], *REHEARSED, *ALL[1:])}


@dataclass(frozen=True)
class Aim:
    """A bound that a value measured by a step should meet on a CUDA device."""

    step: str
    value: str
    """The name of the value in the step's file."""
    bound: float
    at_least: bool = True

    def judged(self, values: dict[str, Any], on_cuda: bool) -> tuple[str, float | None]:
        """Return `met`, `missed` or `not measured`, and the measured value if there is one."""
        found, more = values.get(self.value), values.get(f"{self.value}, more than")
        if not on_cuda:
            return "not measured", None
        if found is not None:
            return "met" if (found >= self.bound if self.at_least else found < self.bound) else "missed", found
        if more is not None and not self.at_least and more >= self.bound:  # the step was cut off beyond the bound
            return "missed", more
        return "not measured", None

    def __str__(self) -> str:
        return f"{self.step}: {self.value} {'>=' if self.at_least else '<'} {self.bound:,.0f}"


AIMS = (
    Aim("throughput", "sgd, 100 members, engine", 300_000),
    Aim("throughput", "adamw, 100 members, engine", 300_000),
    Aim("throughput", "sgd, 100 members, engine/loop", 100),
    Aim("throughput", "adamw, 100 members, engine/loop", 100),
    Aim("throughput", "shampoo, 100 members, engine/loop", 30),
    Aim("throughput", "newton, 100 members, engine/loop", 30),
    Aim("continual", "seconds", 90, at_least=False),
)


@dataclass
class Session:
    """One invocation of the script."""

    out: Path
    device: str
    rehearse: bool
    budget: float
    steps: Sequence[Step]
    started: float
    ended_by: int | None = None
    """The signal that ended the invocation, if any."""
    no_device: bool = False
    """True if the first step did not find the device, so that all other steps would fail."""

    @property
    def left(self) -> float:
        """Remaining seconds of the budget, excluding those reserved for the summary."""
        return self.started + self.budget - LAST - time.monotonic()

    def run(self) -> int:
        """Run all steps; return the exit code."""
        for step in self.steps:
            # Results of an earlier call could be mistaken for those of this one.
            (self.out / f"{step.name}.json").unlink(missing_ok=True)
        self.write_summary()
        for step in self.steps:
            if self.ended_by is not None:
                break
            say(f"{step.name}: {step.about}")
            found = self.run_step(step)
            self.write_summary()
            reason = f": {found['reason']}" if found["reason"] else ""
            say(f"{step.name}: {found['status']}{reason}, {found['seconds']:.1f} s")
            for aim in found["aims"]:
                say(f"    {aim['verdict']}: {aim['aim']}")
        code = self.write_summary(finished=True)
        say("\n" + (self.out / "table.md").read_text(encoding="utf-8"))
        say(f"All results: {self.out}")
        return code

    def run_step(self, step: Step) -> dict[str, Any]:
        """Run one step in a separate process; return the content of its file."""
        file = self.out / f"{step.name}.json"
        limit = min(step.tiny_limit if self.rehearse else step.limit, self.left)
        started, now = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
        lacking = missing(step.needs)
        status: str
        reason: str | None
        if lacking:
            status, reason = "not run", f"missing: {', '.join(lacking)}"
        elif self.no_device:
            status, reason = "not run", f"torch finds no device {self.device}"
        elif limit < SHORTEST and limit < step.limit:
            status, reason = "not run", f"the budget of {self.budget:g} s is spent"
        else:
            replace(file, as_json({"step": step.name, "status": "running", "started": now}))
            status, reason = self.process(step, limit)
        seconds = time.monotonic() - started
        found = read(file)
        checks = found.get("checks", [])
        if step.ends == "killed":
            checks.append(self.check_kill(found.get("values", {}), seconds - limit))
        failed = [check["check"] for check in checks if not check["held"]]
        if status == "done" and found.get("cut_off"):
            status, reason = "cut off", found["cut_off"]
        if failed and status in ("done", step.ends):
            status, reason = "failed", f"{len(failed)} of {len(checks)} checks: {'; '.join(failed)}"
        values = found.get("values", {})
        self.no_device |= values.get("found") is False
        found = {
            "step": step.name,
            "about": step.about,
            "status": status,
            "as it should": status == step.ends and not failed,
            "reason": reason,
            "started": now,
            "seconds": round(seconds, 3),
            "limit": round(limit, 3),
            "missing": missing(step.wants),
            "aims": self.aims(step.name, values),
            "checks": checks,
            "values": values,
            "lines": found.get("lines", []),
        }
        replace(file, as_json(found))
        return found

    def process(self, step: Step, limit: float) -> tuple[str, str | None]:
        """Run the step in a separate process; return its status and the reason for that status, if known."""
        command = [sys.executable, __file__, "--device", self.device, "--out", str(self.out)]
        command += ["--inside", step.name, "--limit", repr(limit), *(["--rehearse"] if self.rehearse else [])]
        log = self.out / f"{step.name}.log"
        with log.open("wb") as out:
            # The child's standard input reaches end of file when this process ends, for whatever reason.
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                deadline = time.monotonic() + limit
                while process.poll() is None and time.monotonic() < deadline and self.ended_by is None:
                    time.sleep(0.02)
                code = process.poll()
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
                end_descendants()
        if self.ended_by is not None:
            return "interrupted", f"by signal {self.ended_by}"
        if code is None:
            return "killed", f"not done after {limit:.0f} s"
        if code:
            last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            return "failed", f"exit code {code}: {last[-1][:300] if last else 'nothing printed'}"
        return "done", None

    def check_kill(self, values: dict[str, Any], over: float) -> dict[str, Any]:
        """Return the check that the hanging step and its child were killed in time."""
        pids = values.get("processes", [])
        alive = [pid for pid in pids if is_alive(pid)] + descendants()
        held = len(pids) == 2 and not alive and over < 5
        found = f"{len(pids)} processes, {len(alive)} left, {over:.1f} s over"
        return {"check": "the step and its child are killed within the limit", "held": held, "found": found}

    def aims(self, step: str, values: dict[str, Any]) -> list[dict[str, Any]]:
        found = []
        for aim in AIMS:
            if aim.step == step:
                verdict, number = aim.judged(values, self.device != "cpu" and not self.rehearse)
                found.append({"aim": str(aim), "verdict": verdict, "found": number})
        return found

    def write_summary(self, *, finished: bool = False) -> int:
        """Write `summary.json` and `table.md` from the files of all steps; return the exit code so far."""
        steps = {name: found for name in EVERY if (found := read(self.out / f"{name}.json"))}
        ours = [steps.get(step.name, {}).get("as it should", False) for step in self.steps]
        code = 128 + self.ended_by if self.ended_by is not None else int(not all(ours))
        summary = {
            "command": shlex.join(["python", *sys.argv]),
            "device": self.device,
            "rehearsal": self.rehearse,
            "finished": finished,
            "exit code": code if finished else None,
            "seconds": round(time.monotonic() - self.started, 3),
            "budget": self.budget,
            "planned": [step.name for step in self.steps],
            "aims": [aim for step in ALL for aim in steps.get(step.name, {}).get("aims") or self.aims(step.name, {})],
            "steps": steps,
        }
        replace(self.out / "summary.json", as_json(summary))
        replace(self.out / "table.md", table(summary))
        return code


def table(summary: dict[str, Any]) -> str:
    """Return Markdown with the status of the steps, the aims, and the lines of each step."""
    lines = [f"## On a device: `{summary['command']}`", ""]
    if summary["rehearsal"]:
        lines += ["**This is a rehearsal: sizes are tiny, and the numbers are meaningless.**", ""]
    steps: dict[str, dict[str, Any]] = summary["steps"]
    lines += [f"- {line}" for line in steps.get("machine", {}).get("lines", [])]
    lines += ["", "| step | ended | seconds | limit | checks held | |", "|---|---|---|---|---|---|"]
    for name in summary["planned"]:
        steps.setdefault(name, {"status": "not begun"})
    for name, step in steps.items():
        checks = step.get("checks", [])
        held = f"{sum(check['held'] for check in checks)} of {len(checks)}"
        notes = [step.get("reason") or ""]
        notes += [f"without {', '.join(step['missing'])}"] if step.get("missing") else []
        notes = [note.replace("|", "\\|") for note in notes if note]
        seconds, limit = step.get("seconds", 0), step.get("limit", 0)
        lines.append(f"| {name} | {step['status']} | {seconds:.1f} | {limit:.0f} | {held} | {'; '.join(notes)} |")
    lines += ["", "| aim | measured | verdict |", "|---|---|---|"]
    for aim in summary["aims"]:
        number = "" if aim["found"] is None else f"{aim['found']:,.1f}"
        lines.append(f"| {aim['aim']} | {number} | {aim['verdict']} |")
    for name, step in steps.items():
        failed = [
            f"- failed: {check['check']}: {check['found']}" for check in step.get("checks", []) if not check["held"]
        ]
        if name != "machine" and (step.get("lines") or failed):
            lines += ["", f"### {name}", "", *failed, *([""] if failed else [])]
            lines += ["```text", *step["lines"], "```"] if step.get("lines") else []
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    """Print text. If the terminal is gone, continue without printing."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read(file: Path) -> dict[str, Any]:
    """Return the content of a step's file; empty if the step has not begun."""
    if not file.exists():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def missing(modules: Sequence[str]) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def find_optbench() -> str | None:
    """Add the repository to the path of this process and its children if optbench is not installed."""
    if importlib.util.find_spec("optbench") is not None:
        return None
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return f"optbench is not installed: {ROOT} was added to the path"


def inside(step: str, out: Path, device: str, rehearse: bool, limit: float) -> None:
    """Run a step in this process."""
    adopt_orphans()
    end_with(sys.stdin.fileno())
    # The tests import `tests.conftest`. The steps import neighbouring files, which are on the path of a script.
    sys.path.insert(1, str(ROOT))
    found = Finding(out / f"{step}.json", device, rehearse, limit)
    found.write()
    STEPS[step](found)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(EVERY)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--out", type=Path, help="folder for the results; default: a new one")
    parser.add_argument(
        "--only",
        action="append",
        metavar="STEP",
        help="run only this step (see --list); repeat it to run several, in the order given",
    )
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all steps together (%(default)g)")
    parser.add_argument(
        "--rehearse", action="store_true", help="use tiny sizes, and add a step that hangs and one that fails"
    )
    parser.add_argument("--list", action="store_true", help="list the steps and aims")
    parser.add_argument("--inside", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not re.fullmatch(r"cpu|cuda(:\d+)?", given.device):
        parser.error(f"--device {given.device}: expected cuda, cuda:N or cpu")
    if not 0 < given.budget < float("inf"):
        parser.error(f"--budget {given.budget:g}: expected a number of seconds above 0")
    known = [step.name for step in (EVERY.values() if given.rehearse else ALL)]
    if wrong := [name for name in (given.only or [given.inside]) if name not in (*known, None)]:
        parser.error(f"--only {wrong[0]}: expected one of {', '.join(known)}")
    return given


def main() -> int:
    given = arguments()
    said = find_optbench()
    if given.inside:
        inside(given.inside, given.out, given.device, given.rehearse, given.limit)
        return 0
    if given.list:
        print("\n".join(f"{step.name:12}{limit_of(step):>9}  {step.about}" for step in ALL))
        print("\n".join(f"aim         {'':9}  {aim}" for aim in AIMS))
        return 0
    chosen = given.only or [name for name, step in EVERY.items() if given.rehearse or step in ALL]
    steps = [EVERY[name] for name in dict.fromkeys(chosen)]
    out = (given.out or Path(f"on-device-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")).resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
        before = read(out / "summary.json")
    except (OSError, ValueError) as error:
        print(f"on_device.py: --out {out}: {error}", file=sys.stderr)
        return 2
    here = (given.device, given.rehearse)
    if before and (before.get("device"), before.get("rehearsal")) != here:
        kind = f"--device {before.get('device')}{' --rehearse' if before.get('rehearsal') else ''}"
        print(f"on_device.py: --out {out}: expected a new folder, got one with results of {kind}", file=sys.stderr)
        return 2
    session = Session(out, given.device, given.rehearse, given.budget, steps, time.monotonic())

    def end(number: int, frame: FrameType | None) -> None:
        session.ended_by = number

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    adopt_orphans()
    if said:
        say(said)
    without = sorted({name for step in steps for name in missing((*step.needs, *step.wants))})
    if without:
        say(f"missing packages: {', '.join(without)}")
    return session.run()


def limit_of(step: Step) -> str:
    return "the rest" if step.limit == REST else f"{step.limit:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
