"""This package's own copy for another place: a folder that a container sees, a node of a cluster."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import tools

__all__ = ["pack_source", "ship"]


def ship(folder: Path) -> Path:
    """Copy this package into folder and return what to put on the container's import path."""
    home = folder / ".launch"
    shutil.rmtree(home, ignore_errors=True)
    source = Path(tools.__file__).parent
    shutil.copytree(source, home / "tools", ignore=shutil.ignore_patterns("__pycache__", "*.yaml"))
    return home


def pack_source() -> bytes:
    """Return this package's modules as a zip archive."""
    source = Path(tools.__file__).parent
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("*.py")):
            archive.write(path, path.relative_to(source.parent).as_posix())
    return target.getvalue()
