"""`optbench.run` in a script, a thread and IPython (notebooks: `test_examples.py`); interrupts leave Python alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optbench
from optbench.execution.interrupts import ECHO

DEFINED = """
import torch, optbench

class Mine(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
"""
TRAINED = """run = optbench.run("smoke", seeds=1, experiments=["permuted-mnist"], device="cpu", jobs=1, name="{name}",
    optimizers={{"sgd": None, "mine": Mine}}, set={{"experiments.permuted-mnist.protocol.max_steps": 5}})
"""
# There is no guard, so worker processes must not execute the script again.
SCRIPT = """
import signal, threading
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
print("began", flush=True)
{script}
print(optbench.read_run("script").summary("forgetting")["n"].tolist(), flush=True)
def in_thread():
    global run, seen
    seen = []
    set_handler, signal.signal = signal.signal, lambda *given: seen.append(given)
    {thread}
    signal.signal = set_handler
thread = threading.Thread(target=in_thread)
thread.start()
thread.join()
print(run.table("trials")["status"].tolist(), seen)
print(handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])
"""


def trained(name: str, folder: Path) -> None:
    """Check that a class of the main module has the results of SGD under another name."""
    run = optbench.read_run(name, folder / "runs")
    trials = run.table("trials")
    assert trials[["optimizer", "status"]].values.tolist() == [["sgd", "ok"], ["mine", "ok"]]
    assert trials["init_hash"].nunique() == 1
    values = run.values().pivot(index="metric", columns="optimizer", values="value")
    assert values.loc["forgetting", "mine"] == values.loc["forgetting", "sgd"]
    assert "class Mine(torch.optim.SGD):" in (run.path / "plugins" / "Mine.py").read_text()


def test_a_script_without_a_guard_trains_in_the_main_thread_and_in_another(tmp_path: Path) -> None:
    script, thread = TRAINED.format(name="script"), TRAINED.format(name="thread").replace("\n", "")
    (tmp_path / "script.py").write_text(DEFINED + SCRIPT.format(script=script, thread=thread))
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout.splitlines(), done.stderr) == (["began", "[1, 1]", "['ok', 'ok'] []", "True"], "")
    for name in ("script", "thread"):
        trained(name, tmp_path)


def test_ipython_trains_classes_typed_at_the_prompt(tmp_path: Path) -> None:
    text = f"{DEFINED}\n{TRAINED.format(name='typed')}\nprint(repr(run))"
    command = [sys.executable, "-m", "IPython", "--no-banner", "--quick", "--colors=nocolor", "-c", text]
    environment = {**os.environ, "IPYTHONDIR": os.fspath(tmp_path / "profile")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "complete, 2 trials (2 ok)" in done.stdout
    trained("typed", tmp_path)


INTERRUPTED = """
import pathlib, signal, time, torch, optbench
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

class Slow(torch.optim.SGD):
    def step(self, closure=None):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path(FOLDER, "training").touch()
        time.sleep(0.1)
        return super().step()

try:
    optbench.run("smoke", seeds=1, experiments=["permuted-mnist"], device="cpu", jobs=1, name="cut",
                 optimizers={"sgd": None, "slow": {"target": Slow, "lr": 0.1}},
                 set={"experiments.permuted-mnist.protocol.max_steps": 400})
except KeyboardInterrupt as error:
    print(error)
print(handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])
time.sleep(0.5)  # a second interrupt that came too late would be seen here
run = optbench.read_run("cut")
print(run.status, run.table("trials")["optimizer"].tolist(), sorted(set(run.table("summary")["optimizer"])))
"""


def test_two_interrupts_keep_finished_trials_and_the_interpreter_alive(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(INTERRUPTED.replace("FOLDER", repr(os.fspath(tmp_path))))
    with subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not ((tmp_path / "training").exists() and list(tmp_path.glob("runs/cut/parts/*/trials.parquet"))):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        time.sleep(ECHO + 0.1)  # killing the worker that ignores signals takes longer
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert output.splitlines() == [
        "1 finished trial is kept; continue with optbench.run(resume='runs/cut', ...)",
        "True",
        "interrupted ['sgd'] ['sgd']",
    ]
