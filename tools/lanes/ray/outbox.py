"""Checkpoints on their way out, kept from being rotated away while they are read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tools.lanes.ray.parcels import Parcel, read_piece
from tools.lanes.ray.view import Mark

__all__ = ["Outbox", "checkpoint_mark", "checkpoint_name"]


def checkpoint_name(step: int) -> str:
    """Return the folder's name of a step's checkpoint."""
    return f"iter_{step:07d}"


def checkpoint_mark(folder: Path) -> Mark:
    """Return what changes when anything in a checkpoint's folder is replaced or removed."""
    status = folder.stat()
    return (status.st_ino, status.st_mtime_ns)


class Outbox:
    """Second names of checkpoint files: the trainer removes its own, these stay."""

    def __init__(self, run_dir: Path, folder: Path) -> None:
        self._run_dir = run_dir
        self._folder = folder

    def hold(self, step: int, mark: Mark) -> Parcel | None:
        """Keep a checkpoint and say what is in it; None where it is gone, or was on its way out."""
        source = self._run_dir / checkpoint_name(step)
        target = self._folder / checkpoint_name(step)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        try:
            names = [path.name for path in source.iterdir() if path.is_file()]
            for name in names:
                os.link(source / name, target / name)
            # Removing a file changes the folder's time, so that half a folder is never taken for one.
            is_whole = checkpoint_mark(source) == mark
        except FileNotFoundError:
            is_whole = False
        if not is_whole:
            self.drop(step)
            return None
        return Parcel.of({name: target / name for name in names})

    def read(self, step: int, name: str, start: int) -> bytes:
        """Return the next piece of a file of a checkpoint that is kept."""
        return read_piece(self._folder / checkpoint_name(step) / name, start)

    def drop(self, step: int) -> None:
        """Keep a checkpoint no longer."""
        shutil.rmtree(self._folder / checkpoint_name(step), ignore_errors=True)
