"""Run a SLURM cluster of one node on this machine while a command runs, or until Ctrl-C.

    apt-get install --no-install-recommends slurm-wlm munge       # Debian, Ubuntu
    python benchmarks/slurm_node.py                               # prints how to use it; Ctrl-C stops it
    python benchmarks/slurm_node.py -- python -m pytest -m slow tests/execution/test_slurm_node.py

The script runs munged, slurmctld and slurmd as the calling user, with their configuration, key, state and logs in a
temporary folder, so it neither needs nor changes an existing SLURM installation. It works in a container, because it
does not need systemd, control groups or an accounting database (`sacct` does not work). The partition is called `cpu`.
Only SLURM's bookkeeping limits jobs to the node's number of CPUs, which may exceed that of the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo")
PARTITION = "cpu"
PATIENCE = 60.0
"""Seconds to wait for the node to become idle."""
WITHOUT_CGROUPS = (24, 5)
"""The first version of SLURM that uses control groups unless they are disabled."""


def find(program: str) -> str:
    """Return the path of a program, also searching the folders of daemons, which are not on every user's PATH.

    Raises:
        SystemExit: the program is not installed.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/sbin"])
    if (found := shutil.which(program, path=path)) is None:
        sys.exit(f"{program}: not installed; on Debian: apt-get install --no-install-recommends slurm-wlm munge")
    return found


def said_version(environment: Mapping[str, str]) -> str:
    """Return SLURM's version, such as `slurm-wlm 22.05.8`. Even for this, SLURM reads its configuration."""
    command = [find("sinfo"), "--version"]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def free_ports(count: int) -> list[int]:
    """Return the numbers of unused ports."""
    with contextlib.ExitStack() as exits:
        sockets = [exits.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def configure(folder: Path, cpus: int) -> Path:
    """Write slurm.conf and munge's key into a folder; return the path of slurm.conf."""
    user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
    host = socket.gethostname().partition(".")[0]
    controller, daemon = free_ports(2)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    settings = {
        "ClusterName": "optbench",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": controller,
        "SlurmdPort": daemon,
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder / 'munge.socket'}",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd.log",
        "MpiDefault": "none",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        "SlurmdParameters": "config_overrides",
        "ReturnToService": 2,
    }
    nodes = [
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN",
        f"PartitionName={PARTITION} Nodes={host} Default=YES MaxTime=INFINITE State=UP",
    ]
    path = folder / "slurm.conf"
    path.write_text("\n".join([*(f"{name}={value}" for name, value in settings.items()), *nodes, ""]))
    version = re.search(r"(\d+)\.(\d+)", said_version({**os.environ, "SLURM_CONF": str(path)}))
    if version is not None and (int(version[1]), int(version[2])) >= WITHOUT_CGROUPS:
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    return path


@contextlib.contextmanager
def daemon(folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon in the foreground of a new session, which Ctrl-C does not reach, and stop it after the block."""
    with (folder / f"{Path(command[0]).name}.out").open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def node(folder: Path, cpus: int) -> Iterator[dict[str, str]]:
    """Run the daemons during the block; yield the environment in which `sbatch` finds them.

    Raises:
        SystemExit: a daemon ended, or the node did not become idle; the ends of the logs are printed.
    """
    environment = {**os.environ, "SLURM_CONF": str(configure(folder, cpus))}
    at = {name: str(folder / f"munge.{name}") for name in ("key", "socket", "pid", "seed", "log")}
    commands = [
        [find("munged"), "--foreground", "--force", f"--key-file={at['key']}", f"--socket={at['socket']}",
         f"--pid-file={at['pid']}", f"--seed-file={at['seed']}", f"--log-file={at['log']}"],
        [find("slurmctld"), "-D"],
        [find("slurmd"), "-D"],
    ]  # fmt: skip
    with contextlib.ExitStack() as exits:
        daemons = []
        for command in commands:
            daemons.append(exits.enter_context(daemon(folder, command, environment)))
            until = time.monotonic() + PATIENCE
            while command is commands[0] and not Path(at["socket"]).exists() and time.monotonic() < until:
                time.sleep(0.1)
        until = time.monotonic() + PATIENCE
        while True:
            asked = [find("sinfo"), "--noheader", "--format=%t"]
            found = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
            if found.stdout.strip() == "idle":
                break
            ended = [Path(command[0]).name for command, one in zip(commands, daemons, strict=True) if one.poll()]
            if ended or time.monotonic() > until:
                for log in sorted([*folder.glob("*.log"), *folder.glob("*.out")]):
                    lines = log.read_text(errors="replace").splitlines()[-15:]
                    print(f"--- {log.name}", *lines, sep="\n", file=sys.stderr)
                what = f"{ended[0]} has ended" if ended else f"the node is not idle: {found.stdout or found.stderr}"
                sys.exit(f"SLURM did not start: {what.strip()}")
            time.sleep(0.2)
        yield environment


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cpus", type=int, default=2, help="number of CPUs of the node (default: 2)")
    parser.add_argument("command", nargs="*", help="the command to run; default: wait for Ctrl-C")
    words = parser.parse_args()
    for program in PROGRAMS:
        find(program)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # The paths of sockets must be short, so TMPDIR, whose path may be long, is not used.
    made = tempfile.TemporaryDirectory(prefix="slurm-node-", dir="/tmp", ignore_cleanup_errors=True)
    with made as folder, node(Path(folder), words.cpus) as env:
        try:
            if words.command:
                return subprocess.run(words.command, env=env, check=False).returncode
            print(
                f"{said_version(env)}: a node of {words.cpus} CPUs, partition {PARTITION}; Ctrl-C stops it. To use it:"
            )
            print(f"export SLURM_CONF={shlex.quote(env['SLURM_CONF'])}")
            print(f"optbench run smoke --on slurm --set-on partition={PARTITION} --jobs {words.cpus}", flush=True)
            signal.pause()
        except KeyboardInterrupt:
            return 130 if words.command else 0
        finally:
            subprocess.run(["scancel", "--full", f"--partition={PARTITION}"], env=env, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
