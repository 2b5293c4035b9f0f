"""New lines of a metrics file, as it grows or is replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

__all__ = ["MetricsTail"]

_BLOCK_BYTES: Final = 1 << 20


class MetricsTail:
    """Reads a file's whole lines, a bounded block at a time. Nothing waits in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int | None = None
        self._offset = 0

    def read(self) -> tuple[dict[str, Any], ...]:
        """Return the objects of the next whole lines; none when nothing new is there.

        A file that was replaced is read from its start. A line that is no object is left out.
        """
        try:
            with self._path.open("rb") as file:
                self._follow(os.fstat(file.fileno()))
                file.seek(self._offset)
                block = file.read(_BLOCK_BYTES)
        except OSError:
            return ()
        end = block.rfind(b"\n") + 1
        self._offset += end or (len(block) if len(block) == _BLOCK_BYTES else 0)
        return tuple(line for raw in block[:end].splitlines() if (line := _parse(raw)) is not None)

    def _follow(self, status: os.stat_result) -> None:
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._inode, self._offset = status.st_ino, 0


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None
