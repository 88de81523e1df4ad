"""The command line: one Typer app; every command reads like a sentence."""

from __future__ import annotations

from optbench.cli.entry import main

__all__ = ["main"]
