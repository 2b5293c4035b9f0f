"""The folder of one run: whose it is, who writes in it, what was in it before."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tools.child import GRACE_S, is_alive, started_at
from tools.errors import LockHeldError
from tools.files import digest_file, write_json_atomic
from tools.poll import TRACKER, poll_run_progress
from tools.recipe import Mode, TrainRecipe

__all__ = ["claim_run_dir", "held", "is_finished", "mark_finished", "marks"]

IDENTITY: Final = "run.json"

_LOG = logging.getLogger(__name__)
# An orphan gets its grace to save a checkpoint; after that and a little it has to be gone.
_PATIENCE_S: Final = GRACE_S + 15.0


@contextlib.contextmanager
def held(path: Path, *, what: str, sleep: Callable[[float], None] = time.sleep) -> Iterator[int]:
    """Hold a lock file for the block and give its descriptor, for children to hold it too.

    Where the holder's own parent is gone, the orphan is on its way out: it is waited for.

    Raises:
        LockHeldError: another live process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while not _try_lock(descriptor):
            holder = _holder(descriptor)
            if is_alive(*holder) or time.monotonic() > deadline:
                raise LockHeldError(
                    f"{what} is in use by process {holder[0] or 'unknown'}; wait for it or end it first"
                )
            sleep(0.2)
        os.ftruncate(descriptor, 0)
        me = {"pid": os.getpid(), "started": started_at(os.getpid())}
        os.pwrite(descriptor, json.dumps(me).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> tuple[int | None, float | None]:
    try:
        data = json.loads(os.pread(descriptor, 256, 0))
        return int(data["pid"]), float(data["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def claim_run_dir(recipe: TrainRecipe, mode: Mode, *, now: datetime) -> Path:
    """Make the run folder ready for this run and return it.

    A run of the very same recipe and rows that was cut short stays, so that the trainer can
    go on from its last checkpoint. Whatever else lies there is moved aside, whole: the
    checkpoints of an older run are never taken for this one's.
    """
    folder = recipe.run_dir(mode)
    identity = _identity(recipe, mode)
    if folder.exists() and not _continues(folder, identity):
        aside = _free_name(folder.with_name(f"{folder.name}.before-{now:%Y%m%dT%H%M%SZ}"))
        os.rename(folder, aside)
        _LOG.warning("%s held an older run; moved to %s", folder, aside)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / IDENTITY, {**identity, "finished": False})
    return folder


def mark_finished(recipe: TrainRecipe, mode: Mode) -> None:
    """Record that the run in the folder reached its end, so that the next one starts anew."""
    write_json_atomic(recipe.run_dir(mode) / IDENTITY, {**_identity(recipe, mode), "finished": True})


def is_finished(recipe: TrainRecipe, mode: Mode) -> bool:
    """Return whether the folder holds this very run, of the same rows, and it reached its end."""
    try:
        found = json.loads((recipe.run_dir(mode) / IDENTITY).read_text(encoding="utf-8"))
        return bool(found == {**_identity(recipe, mode), "finished": True})
    except (OSError, ValueError):
        return False


def marks(run_dir: Path) -> dict[int, tuple[int, int]]:
    """Return each checkpoint on disk with what tells it from a later one of the same number."""
    found: dict[int, tuple[int, int]] = {}
    for number in poll_run_progress(run_dir)[1]:
        for name in (f"iter_{number:07d}", f"checkpoint-{number}"):
            with contextlib.suppress(OSError):
                status = (run_dir / name).stat()
                found[number] = (status.st_ino, status.st_mtime_ns)
    return found


def _identity(recipe: TrainRecipe, mode: Mode) -> dict[str, Any]:
    return {
        "version": 1,
        "recipe_digest": recipe.digest,
        "rows_digest": digest_file(Path(recipe.dataset_jsonl).expanduser()),
        "mode": mode,
    }


def _continues(folder: Path, identity: dict[str, Any]) -> bool:
    """Return whether folder is free, or holds the cut-short beginning of this same run."""
    if not (folder / IDENTITY).exists():
        return not poll_run_progress(folder)[1] and not (folder / TRACKER).exists()
    try:
        found = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == {**identity, "finished": False})


def _free_name(path: Path) -> Path:
    names = [path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 1000))]
    for candidate in names:
        if not candidate.exists():
            return candidate
    raise LockHeldError(f"1000 older runs lie beside {path}; remove some")
