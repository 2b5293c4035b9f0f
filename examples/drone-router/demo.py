"""The demo: a whole bakeoff on a fresh machine, from the recipe to the committed decision."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

from agent.cli.flywheel_commands import bakeoff, report
from agent.cli.output import CONSOLE, duration
from agent.cli.workspace_commands import fetch
from agent.scaffold import create_workspace
from tools.errors import BakehouseError

EXAMPLE = Path(__file__).resolve().parent
MODEL = "smollm2-135m-instruct-q4_1"


def main() -> None:
    """Fetch the model, make a workspace, run one bakeoff and open the sealed split once."""
    started = time.monotonic()
    fetch(MODEL)
    root = _new_folder(EXAMPLE.parent.parent / ".demo")
    create_workspace(root, name=EXAMPLE.name, source=EXAMPLE)
    CONSOLE.print(f"workspace: {root}", markup=False, highlight=False, soft_wrap=True)
    bakeoff(root)
    CONSOLE.print()
    report(root, open_test=True)
    CONSOLE.print(f"\ntotal: {duration(time.monotonic() - started)}", markup=False)


def _new_folder(parent: Path) -> Path:
    """Return a folder that does not exist yet, so that an earlier demo's branch stays to be read."""
    parent.mkdir(exist_ok=True)
    return next(path for n in itertools.count(1) if not (path := parent / f"drone-router-{n}").exists())


if __name__ == "__main__":
    try:
        main()
    except BakehouseError as err:
        sys.exit(f"error ({type(err).__name__}): {err}")
