"""Locks on files that die with their holder, so that a killed process blocks nobody."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.clock import Clock, utc_now
from tools.errors import LockHeldError

__all__ = ["LockHolder", "hold_lock", "hold_workspace", "workspace_holder"]

_LOCK_NAME = "lock"
# workspace_holder holds the lock for an instant to see whether it is free; a flywheel that
# starts in that instant tries again instead of giving up.
_TRIES = 5
_PAUSE_S = 0.05


@dataclass(frozen=True)
class LockHolder:
    """Who holds a workspace."""

    pid: int
    host: str
    what: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.what}, since {self.since})"


@contextlib.contextmanager
def hold_workspace(state_dir: str | Path, *, what: str, clock: Clock = utc_now) -> Iterator[LockHolder]:
    """Hold the workspace for the length of the block: one flywheel at a time.

    The lock is the kernel's, not the file's content: it ends with the process, whatever the
    file still says. Programs that the holder starts do not inherit it.

    Args:
        state_dir: The workspace's `.bakehouse`; it is made when missing.
        what: What the holder does, for whoever is refused.
        clock: Gives the time that is recorded.
    Raises:
        LockHeldError: another process, or another block of this one, holds it; says who.
    """
    path = Path(state_dir) / _LOCK_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = LockHolder(os.getpid(), socket.gethostname(), what, clock())
    with path.open("a+b") as file:
        if not _try_lock(file.fileno(), fcntl.LOCK_EX, tries=_TRIES):
            raise LockHeldError(
                f"{path.parent} is held by {_read_holder(path) or 'another process'}; "
                "wait for it to end, or stop it"
            )
        _record(file.fileno(), json.dumps(asdict(holder)))
        try:
            yield holder
        finally:
            _record(file.fileno(), "")
            # Explicit: a child that was forked, not started, shares the lock and would keep it.
            fcntl.flock(file, fcntl.LOCK_UN)


def workspace_holder(state_dir: str | Path) -> LockHolder | None:
    """Return who holds the workspace now, or None when it is free."""
    path = Path(state_dir) / _LOCK_NAME
    try:
        with path.open("rb") as file:
            if _try_lock(file.fileno(), fcntl.LOCK_SH, tries=1):
                return None
    except FileNotFoundError:
        return None
    return _read_holder(path) or LockHolder(0, "unknown host", "unknown", "unknown")


@contextlib.contextmanager
def hold_lock(path: Path, *, timeout_s: float) -> Iterator[int]:
    """Hold an exclusive lock on path and yield its file descriptor.

    A program that inherits the descriptor keeps the lock should this process be killed, so
    that whoever comes next waits until that program has ended too.

    Raises:
        LockHeldError: the lock was not free within timeout_s.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        tries = max(1, round(timeout_s / _PAUSE_S))
        if not _try_lock(file.fileno(), fcntl.LOCK_EX, tries=tries):
            raise LockHeldError(
                f"{path} is still held after {timeout_s:g} s by a program that an earlier run started; "
                f"find it with `fuser {path}` and stop it"
            )
        try:
            yield file.fileno()
        finally:
            # Releases it for heirs as well: a background program left by a hook keeps nothing.
            fcntl.flock(file, fcntl.LOCK_UN)


def _try_lock(descriptor: int, kind: int, *, tries: int) -> bool:
    for attempt in range(tries):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < tries:
                time.sleep(_PAUSE_S)
        else:
            return True
    return False


def _record(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode("utf-8"), 0)


def _read_holder(path: Path) -> LockHolder | None:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        return LockHolder(int(row["pid"]), str(row["host"]), str(row["what"]), str(row["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
