"""The `optbench` script: an interrupt while the command line is imported prints one line instead of a traceback."""

from __future__ import annotations

import sys


def main() -> int:
    """Import the command line, run it and return the exit code."""
    try:
        from optbench.cli import main as command

        return command()
    except KeyboardInterrupt:
        sys.stderr.write("optbench: interrupted\n")
        return 130
