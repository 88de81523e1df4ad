"""The command line, one Typer app."""

from __future__ import annotations

from optbench.cli.entry import main

__all__ = ["main"]
