"""The command line, a single Typer app."""

from __future__ import annotations

from optbench.cli.entry import main

__all__ = ["main"]
