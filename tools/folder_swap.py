"""A folder that is made anew in its place, and is back as it was if that fails."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """Move folder aside for the block, which makes it anew; put it back if the block fails.

    What a kill leaves is settled by the next call. Three names beside the folder tell what
    happened: `.old` is the whole former folder, the mark `.partial` says that what stands in
    its place is unfinished, `.trash` is on its way out. The caller holds a lock.
    """
    aside, mark, trash = (folder.with_name(f".{folder.name}.{end}") for end in ("old", "partial", "trash"))
    _remove(trash)
    if mark.exists():
        _restore(folder, aside, mark)
    elif aside.exists() and folder.exists():
        _discard(aside, trash)
    elif aside.exists():
        os.rename(aside, folder)
    if folder.exists():
        os.rename(folder, aside)
    mark.touch()
    try:
        yield
    except BaseException:
        _restore(folder, aside, mark)
        raise
    mark.unlink()
    if aside.exists():
        _discard(aside, trash)


def _restore(folder: Path, aside: Path, mark: Path) -> None:
    _remove(folder)
    # The mark goes before the former folder comes back: it must never stand beside a whole one.
    mark.unlink(missing_ok=True)
    if aside.exists():
        os.rename(aside, folder)


def _discard(aside: Path, trash: Path) -> None:
    # Renamed first: a removal cut short must not look like a folder to go back to.
    os.rename(aside, trash)
    _remove(trash)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
