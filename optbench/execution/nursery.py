"""Start-up of worker processes. On Linux, they are forked from one process that has imported the modules they need.

PyTorch is thus imported once for all workers, while the suite is still being read and checked, and a replacement worker
starts within milliseconds. The forking process runs no user code, opens no device and starts no Python thread. Workers
are forked only for CPUs, because an open driver would not survive a fork. For other devices, on other systems, and if
the system does not permit forking in this way, workers are spawned, and each imports the modules itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import select
import signal
import socket
import sys
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from optbench.targets import starting_processes

FORKS = sys.platform.startswith("linux")
PACKET = 2**12
"""Maximum size in bytes of a request or answer."""
DRIVERS = tuple(map(Path, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")))
"""Device files, at least one of which exists if Linux has an NVIDIA or AMD driver; the last one exists under WSL."""


class Process(Protocol):
    """A worker process, with part of the interface of `multiprocessing.Process`."""

    @property
    def exitcode(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...
    def is_alive(self) -> bool: ...


class Nursery:
    """A factory for worker processes. If workers are forked, their imports begin when the nursery is constructed.

    forks: False to spawn every worker.
    """

    def __init__(self, *, forks: bool = True) -> None:
        self._forking: list[_Forking] = []  # the last is in use; the workers of an earlier one end when it does
        if forks and FORKS:
            self._begin()

    def start(self, device: str) -> tuple[Connection, Process]:
        """Start a worker on a device; return this process's end of the connection, and the worker process."""
        for again in (False, True):
            if not self._forking:
                break
            try:
                return self._forking[-1].fork(device)
            except ConnectionError:  # the forking process has died
                if again or not self._begin():
                    break
            except OSError:  # not permitted by the system
                break
        from optbench.execution.worker import work

        ours, theirs = multiprocessing.Pipe()
        with theirs:
            return ours, spawn(work, theirs, device)

    def kill(self) -> None:
        """Kill the forking processes; their workers must be killed separately."""
        for forking in self._forking:
            forking.process.kill()

    def close(self) -> None:
        """End the forking processes, whose workers must already have ended."""
        for forking in self._forking:
            forking.close()

    def _begin(self) -> bool:
        try:
            self._forking.append(_Forking())
        except OSError:
            return False
        return True


class _Forking:
    """A process that forks workers on request.

    Raises:
        OSError: the system does not provide process handles (`pidfd_open`), or cannot start another process.
    """

    def __init__(self) -> None:
        os.close(os.pidfd_open(os.getpid()))  # exists since Linux 5.3, but some containers forbid it
        self._numbers = itertools.count()
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self.process = spawn(_fork_on_request, theirs)
            except BaseException:
                self._requests.close()  # if the process was started nevertheless, this ends it
                raise

    def fork(self, device: str) -> tuple[Connection, Process]:
        """Start a worker on a device; return this process's end of the connection, and the worker process.

        Raises:
            ConnectionError: the forking process has died.
            OSError: the system cannot start another process.
        """
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            try:
                return ours, _Forked(self, self._ask("fork", device, handles=[theirs.fileno()]))
            except BaseException:
                ours.close()  # if the worker was started nevertheless, this ends it
                raise

    def exit_code(self, pid: int) -> int:
        """Return the exit code of a worker that has ended. Raises OSError if the forking process cannot provide it."""
        code: int = self._ask("wait", pid)
        return code

    def close(self) -> None:
        self._requests.close()
        self.process.kill()
        until = time.monotonic() + 1
        # Not `join`, which would also wait for the forked processes.
        while self.process.exitcode is None and time.monotonic() < until:
            time.sleep(0.001)

    def _ask(self, *request: object, handles: Sequence[int] = ()) -> Any:
        number = next(self._numbers)
        # Each request is one packet, so that an interrupt cannot leave half of it.
        socket.send_fds(self._requests, [json.dumps([number, *request]).encode()], handles)
        while packet := self._requests.recv(PACKET):
            answered, answer = json.loads(packet)
            if answered != number:  # the answer to a request that was abandoned at an interrupt
                continue
            if isinstance(answer, str):
                raise OSError(answer)
            return answer
        raise BrokenPipeError


class _Forked:
    """A forked worker process.

    Signals are sent through a handle, so that they never reach a later process with the same id.
    """

    def __init__(self, forking: _Forking, pid: int) -> None:
        self.pid = pid
        self.exitcode: int | None = None
        """None while the process runs, or if the code was lost because the forking process died first."""
        self._forking = forking
        self._ended = False
        self._handle = os.pidfd_open(pid)
        weakref.finalize(self, os.close, self._handle)

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def join(self, timeout: float | None = None) -> None:
        if self._ended:
            return
        end = select.poll()
        end.register(self._handle, select.POLLIN)
        if end.poll(None if timeout is None else 1000 * timeout):
            with contextlib.suppress(OSError):
                self.exitcode = self._forking.exit_code(self.pid)
            self._ended = True

    def is_alive(self) -> bool:
        self.join(0)
        return not self._ended

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)


_EARLY: ContextVar[list[Nursery] | None] = ContextVar("early", default=None)


@contextlib.contextmanager
def early(device: str, *, wanted: bool = True) -> Iterator[None]:
    """Start a nursery if workers can be forked; the next call of `nursery` in the block returns it.

    The nursery is closed at the end of the block if it was not used.

    device: the value of the option `--device`. wanted: False to start nothing.
    """
    if not wanted or not FORKS or _EARLY.get() is not None or not _means_cpu(device):
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


def _means_cpu(device: str) -> bool:
    """Return whether a run with this `--device` will use the CPU, as far as this can be told without PyTorch."""
    return device == "cpu" or (device == "auto" and not any(driver.exists() for driver in DRIVERS))


def nursery(devices: Sequence[str]) -> Nursery:
    """Return a nursery for workers on these devices: the one started by `early`, or a new one.

    The caller must close the nursery.
    """
    if any(device != "cpu" for device in devices):
        return Nursery(forks=False)
    waiting = _EARLY.get()
    return waiting.pop() if waiting else Nursery()


def spawn(target: Any, *arguments: object) -> Any:
    """Start a process with the main function `target`, which must call `heedless` first."""
    context = multiprocessing.get_context("spawn")  # threads and devices of a user's program would not survive a fork
    process = context.Process(target=target, args=arguments, daemon=True)
    with starting_processes(), _interrupts_held():
        process.start()
    return process


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C (SIGINT) in this thread until the end of the block, and start processes with the signal blocked.

    On Windows, do nothing.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # otherwise `start` would start the tracker, which unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heedless() -> None:
    """Ignore Ctrl-C, which the parent handles for the entire process group.

    This also unblocks the signal, because `spawn` starts processes with the signal blocked.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _fork_on_request(requests: socket.socket) -> None:
    """Main function of the forking process."""
    heedless()
    from optbench.execution.worker import prepare, work

    prepare()
    codes: dict[int, int] = {}  # by process id; the parent repeats its request if an interrupt made it miss the answer
    while True:
        packet, handles, *_ = socket.recv_fds(requests, PACKET, 1)
        if not packet:
            return  # the parent has ended
        number, what, given = json.loads(packet)
        answer: int | str
        try:
            if what == "wait":
                if given not in codes:
                    codes[given] = os.waitstatus_to_exitcode(os.waitpid(given, 0)[1])
                answer = codes[given]
            else:
                answer = _fork()
                codes.pop(answer, None)
        except OSError as error:
            answer = str(error)
        if answer == 0 and what == "fork":
            requests.close()
            _run(partial(work, Connection(handles[0]), given))
        for handle in handles:
            os.close(handle)
        try:
            requests.send(json.dumps([number, answer]).encode())
        except OSError:
            return  # the parent has ended


def _fork() -> int:
    with warnings.catch_warnings():
        # The threads belong to a BLAS library, which ends them before a fork.
        warnings.filterwarnings("ignore", ".* is multi-threaded", DeprecationWarning)
        return os.fork()


def _run(work: Callable[[], None]) -> None:
    """Do the work of a forked process and exit, skipping the exit handlers of the process from which it was forked."""
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
