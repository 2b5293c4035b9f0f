"""Folders of work that may be killed: each with a lock that its owner holds, swept once nobody does."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["LOCK", "sweep", "work_folder"]

LOCK: Final = "lock"


@contextmanager
def work_folder(gate: Path, parent: Path, prefix: str) -> Iterator[tuple[Path, int]]:
    """Give a folder for the length of the block, and the descriptor of its lock for children to hold too.

    Folders of the same kind whose owners were killed are removed first.

    Args:
        gate: Held for moments by whoever makes or sweeps folders of this kind.
        parent: Where the folder is made.
        prefix: Of its name.
    """
    sweep(gate, parent, prefix)
    gate.parent.mkdir(parents=True, exist_ok=True)
    with gate.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder, lock
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(gate: Path, parent: Path, prefix: str) -> None:
    """Remove the folders of the dead; those of other users are left alone."""
    gate.parent.mkdir(parents=True, exist_ok=True)
    with gate.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for folder in parent.glob(f"{prefix}*"):
            if _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    try:
        with (folder / LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
