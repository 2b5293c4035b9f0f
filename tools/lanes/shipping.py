"""This package's own copy inside a run's folder, where a container sees it."""

from __future__ import annotations

import shutil
from pathlib import Path

import tools

__all__ = ["ship"]


def ship(folder: Path) -> Path:
    """Copy this package into folder and return what to put on the container's import path."""
    home = folder / ".launch"
    shutil.rmtree(home, ignore_errors=True)
    source = Path(tools.__file__).parent
    shutil.copytree(source, home / "tools", ignore=shutil.ignore_patterns("__pycache__", "*.yaml"))
    return home
