"""The `optbench` script: an interrupt while the command line is still being imported is one line, too."""

from __future__ import annotations

import sys


def main() -> int:
    """Import the command line and run it; returns the exit code."""
    try:
        from optbench.cli import main as command

        return command()
    except KeyboardInterrupt:
        sys.stderr.write("optbench: interrupted\n")
        return 130
