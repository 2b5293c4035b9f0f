"""The command line: validate the arguments, call one function, shape the reply."""

from __future__ import annotations

from agent.cli.entry import main

__all__ = ["main"]
