"""Where worker processes come from: on Linux one process imports what all of them need, and each is a fork of it.

So PyTorch is imported once for all workers, while the suite is still being read and checked, and a worker that takes
another's place is there in milliseconds. The process that forks runs nobody's code, opens no device and starts no
thread of Python's. Elsewhere, and should that process die, workers are spawned and import for themselves.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Protocol

from optbench.targets import starting_processes

FORKS = sys.platform.startswith("linux")
PACKET = 2**12
"""Bytes; no request or answer is longer."""


class Process(Protocol):
    """A worker process, as `multiprocessing.Process` has it."""

    @property
    def exitcode(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...
    def is_alive(self) -> bool: ...


class Nursery:
    """Starts worker processes; the first thing it does is to start importing what they need."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._processes: list[Any] = []  # kept, as the end of one is the end of what it has forked
        if FORKS:
            self._begin()

    def start(self, device: str) -> tuple[Connection, Process]:
        """Start a worker on a device; our end of its connection, and the process."""
        if FORKS:
            with contextlib.suppress(OSError):
                return self._fork(device)
            self.close()
            self._begin()
            with contextlib.suppress(OSError):
                return self._fork(device)
        from optbench.execution.worker import work

        ours, theirs = multiprocessing.Pipe()
        with theirs:
            return ours, spawn(work, theirs, device)

    def wait(self, pid: int, seconds: float) -> int | None:
        """The exit code of a forked process; None if it is still there after so many seconds.

        Raises:
            OSError: the process that forked it has died.
        """
        code: int | str | None = self._ask("wait", pid, seconds)
        if isinstance(code, str):
            raise ChildProcessError(code)
        return code

    def kill(self) -> None:
        """End the process that forks without waiting for it."""
        if FORKS:
            self._processes[-1].kill()

    def close(self) -> None:
        """End the process that forks, and with it the forked ones that are left."""
        if FORKS:
            self._requests.close()
            self._processes[-1].kill()  # it holds nothing
            until = time.monotonic() + 1
            # Not `join`, which waits for those that it has forked, too.
            while self._processes[-1].exitcode is None and time.monotonic() < until:
                time.sleep(0.001)

    def _begin(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._processes.append(spawn(_fork_on_request, theirs))

    def _fork(self, device: str) -> tuple[Connection, Process]:
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            try:
                return ours, _Forked(self, self._ask("fork", device, handles=[theirs.fileno()]))
            except BaseException:
                ours.close()  # a worker that is there all the same ends
                raise

    def _ask(self, *request: object, handles: Sequence[int] = ()) -> Any:
        number = next(self._numbers)
        # One packet each, so that an interrupt leaves none in halves.
        socket.send_fds(self._requests, [json.dumps([number, *request]).encode()], handles)
        while packet := self._requests.recv(PACKET):
            answered, answer = json.loads(packet)
            if answered == number:  # not to a question before an interrupt
                return answer
        raise BrokenPipeError


class _Forked:
    """A process that the nursery has forked. Until it is waited for, its id is no other process's."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self.exitcode: int | None = None
        self._nursery: Nursery | None = nursery

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def join(self, timeout: float | None = None) -> None:
        if self.exitcode is None and self._nursery is not None:
            try:
                self.exitcode = self._nursery.wait(self.pid, float("inf") if timeout is None else timeout)
            except OSError:  # nobody can tell any more
                self.kill()
                self._nursery = None

    def is_alive(self) -> bool:
        self.join(0)
        return self.exitcode is None and self._nursery is not None

    def _send(self, number: int) -> None:
        if self.exitcode is None and self._nursery is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


_EARLY: ContextVar[list[Nursery] | None] = ContextVar("early", default=None)


@contextlib.contextmanager
def early(*, wanted: bool = True) -> Iterator[None]:
    """Start now what the pool that is made in the block will need; what is not taken ends with the block.

    wanted: False where nothing will be trained.
    """
    if not wanted or not FORKS or _EARLY.get() is not None:
        yield
        return
    waiting = [Nursery()]
    token = _EARLY.set(waiting)
    try:
        yield
    finally:
        _EARLY.reset(token)
        for nursery in waiting:
            nursery.close()


def nursery() -> Nursery:
    """The one that was started early, or a new one; to be closed by who asks for it."""
    waiting = _EARLY.get()
    return waiting.pop() if waiting else Nursery()


def spawn(target: Any, *arguments: object) -> Any:
    """Start a process by its main function."""
    context = multiprocessing.get_context("spawn")  # threads and devices of a user's program do not survive a fork
    process = context.Process(target=target, args=arguments, daemon=True)
    with starting_processes():
        process.start()
    return process


def _fork_on_request(requests: socket.socket) -> None:
    """Main function of the process that forks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from optbench.execution.worker import prepare, work

    prepare()
    while True:
        packet, handles, *_ = socket.recv_fds(requests, PACKET, 1)
        if not packet:
            return  # the parent has gone
        number, what, *given = json.loads(packet)
        if what == "wait":
            answer = _exit_code(*given)
        else:
            with warnings.catch_warnings():
                # The threads are a BLAS's, which ends them before a fork.
                warnings.filterwarnings("ignore", ".* is multi-threaded", DeprecationWarning)
                answer = os.fork()
            if not answer:
                requests.close()
                _run(partial(work, Connection(handles[0]), *given))
            os.close(handles[0])
        try:
            requests.send(json.dumps([number, answer]).encode())
        except OSError:
            return  # likewise


def _run(work: Callable[[], None]) -> None:
    """Do a forked process's work, and nothing after it that belongs to the process it was forked from."""
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _exit_code(pid: int, seconds: float) -> int | str | None:
    until = time.monotonic() + seconds
    while True:
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except OSError as error:  # it was forked by another process
            return str(error)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)
