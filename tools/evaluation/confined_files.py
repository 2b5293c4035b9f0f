"""Files inside one folder, read without ever leaving it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from tools.errors import EvaluationError

__all__ = ["ConfinedFolder", "OutsideError", "UnreadableError"]

MAX_FILE_BYTES: Final = 64 * 2**20
_BLOCK: Final = 2**20


class OutsideError(Exception):
    """A path that is no name inside the folder; says why."""


class UnreadableError(Exception):
    """A file that is missing or cannot be read; says why."""


class ConfinedFolder:
    """A folder that a program we do not trust has written.

    Links are followed as long as they stay inside. A path is refused when it is absolute, has
    `..` in it, or leads out over a link.

    Raises:
        EvaluationError: root is no folder: of a workspace that is gone nothing can be said.
    """

    def __init__(self, root: str | Path) -> None:
        try:
            self.root = Path(root).resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as err:
            raise EvaluationError(f"{root} cannot be graded: {err}; give the folder a rollout left") from err
        if not self.root.is_dir():
            raise EvaluationError(f"{root} cannot be graded: it is no folder")

    def exists(self, path: object) -> bool:
        """Say whether path leads to anything; a dangling link does not.

        Raises:
            OutsideError: path is no name inside.
            UnreadableError: the folders on its way may not be read.
        """
        try:
            return self._resolve(path).exists()
        except OSError as err:
            raise UnreadableError(f"read error: {err.strerror or err}") from err

    def read(self, path: object) -> bytes:
        """Return the content of a regular file.

        Raises:
            OutsideError: path is no name inside.
            UnreadableError: there is no regular file, it is too large, or reading failed.
        """
        parts = self._resolve(path).relative_to(self.root).parts
        try:
            with self._opened(parts) as descriptor:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise UnreadableError("file missing")
                return _read_all(descriptor)
        except (FileNotFoundError, NotADirectoryError) as err:
            raise UnreadableError("file missing") from err
        except OSError as err:
            raise UnreadableError(f"read error: {err.strerror or err}") from err

    def _resolve(self, path: object) -> Path:
        if not isinstance(path, str) or not path or "\0" in path:
            raise OutsideError(f"path is {path!r}; a relative path is needed")
        named = PurePosixPath(path)
        if named.is_absolute() or ".." in named.parts:
            raise OutsideError("path leaves the root")
        try:
            real = (self.root / named).resolve()
        except (OSError, RuntimeError) as err:
            raise OutsideError(f"path cannot be followed: {err}") from err
        if not real.is_relative_to(self.root):
            raise OutsideError("path leaves the root over a link")
        return real

    @contextlib.contextmanager
    def _opened(self, parts: tuple[str, ...]) -> Iterator[int]:
        """Open a path without links step by step, so that a link put there meanwhile is refused."""
        flags = os.O_RDONLY | os.O_CLOEXEC
        with contextlib.ExitStack() as opened:
            current = os.open(self.root, flags | os.O_DIRECTORY)
            opened.callback(os.close, current)
            for number, part in enumerate(parts, start=1):
                # Without O_NONBLOCK a named pipe would keep us waiting for its writer.
                kind = os.O_DIRECTORY if number < len(parts) else os.O_NONBLOCK
                current = os.open(part, flags | os.O_NOFOLLOW | kind, dir_fd=current)
                opened.callback(os.close, current)
            yield current


def _read_all(descriptor: int) -> bytes:
    blocks: list[bytes] = []
    size = 0
    while block := os.read(descriptor, _BLOCK):
        blocks.append(block)
        size += len(block)
        if size > MAX_FILE_BYTES:
            raise UnreadableError(f"file is larger than {MAX_FILE_BYTES} bytes")
    return b"".join(blocks)
