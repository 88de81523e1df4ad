"""The program of a SLURM job: an agent that serves one worker and exchanges messages with the main process.

The job and the main process share a folder. The job reads messages in `IN`, writes its own to `OUT`, touches its
`PULSE`, and watches the `PULSE` of the main process, one folder above.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.execution.agent import Agent
from optbench.execution.backend import Died
from optbench.execution.mailbox import Mailbox, Pulse

IN, OUT, PULSE = "in", "out", "pulse"
POLL = 0.2
"""Seconds between checks for messages."""
SILENT = 120.0
"""Seconds without a pulse after which the other process is considered dead; network file systems delay changes by up to
60 seconds."""
SETTLE = 1.0
"""Seconds to wait, after a worker process has died, for a signal to this process that explains the death."""


@dataclass(frozen=True)
class Ending:
    """The last message of a job.

    told: True if the main process told the job to end; False if the job ends for another reason.
    """

    told: bool


class FileAgent(Agent):
    """The agent in a job. The bytes of parcels that are sent to many jobs are in files."""

    def fetch(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else Path(content).read_bytes()


def run_job(folder: str, device: str) -> None:
    """Main function of a job.

    If a job is cancelled or preempted, or reaches its time limit, SLURM sends SIGTERM to all of its processes, and
    SIGKILL some time later. At submitit's request, SLURM also sends SIGUSR2 before the time limit. The handlers that
    submitit installs are replaced, because they would ignore SIGTERM and, on SIGUSR2, put a preempted job back into the
    queue with the same id.
    """
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signals.append(number))
    preempts = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")
    if preempts not in (signal.SIGTERM, signal.SIGINT):
        # No handler is used, because worker processes also receive the signal, and can inherit only that it is ignored.
        signal.signal(preempts, signal.SIG_IGN)
    serve(folder, device, lambda: bool(signals))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # otherwise submitit would write a result into the folder, which the main process is removing


def serve(folder: str, device: str, must_end: Callable[[], bool] = lambda: False) -> None:
    """Serve one worker until the main process ends the job or appears to be dead, or `must_end` returns True."""
    place = Path(folder)
    inbox, outbox = Mailbox(place / IN), Mailbox(place / OUT)
    own, parent = Pulse(place / PULSE), Pulse(place.parent / PULSE)
    agent = FileAgent(device)
    told = False
    try:
        try:
            while not (told or must_end()) and parent.silence() < SILENT:
                for name, arguments in inbox.take():
                    if told := name == "close":
                        break
                    getattr(agent, name)(*arguments)
                found = [] if told else agent.receive(POLL)
                if any(isinstance(message, Died) for message in found):
                    # A signal to the entire job also ends the worker process; its unit did not cause this.
                    time.sleep(SETTLE)
                    found = [message for message in found if not (isinstance(message, Died) and must_end())]
                for message in found:
                    outbox.put(message)
                own.beat()
        finally:
            agent.close()
        outbox.put(Ending(told))
    except FileNotFoundError:  # the run has ended and has removed its folder
        return
