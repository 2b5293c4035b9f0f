"""The way into the command line: a plugged-in program runs alone, all else with every command loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Final

__all__ = ["COMMAND_GROUP", "main"]

COMMAND_GROUP: Final = "bakehouse.commands"
"""Entry points of this group take the app and add commands to it.

The module of one may have a `main`, which takes the arguments after its name and returns an exit
code: a server whose client waits is not kept by commands that it does not have.
"""


def main() -> None:
    """Run the command line; exit 1 on an error that the project raises on purpose."""
    program = _program(sys.argv[1:2])
    if program is not None:
        sys.exit(program(sys.argv[2:]))
    from agent.cli.app import main as run

    run()


def _program(name: Sequence[str]) -> Callable[[Sequence[str]], int] | None:
    for plug in entry_points(group=COMMAND_GROUP, name=name[0]) if name else ():
        found: Callable[[Sequence[str]], int] | None = getattr(import_module(plug.module), "main", None)
        return found
    return None
