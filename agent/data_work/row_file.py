"""A file of rows that is changed line by line: lines that nobody touched stay as they were written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.data_work.gate import has_rows
from tools.dataset import load_dataset
from tools.errors import DatasetError
from tools.files import digest_bytes, write_bytes_atomic
from tools.rows import Row

__all__ = ["RowFile"]


class RowFile:
    """The rows of a file and the bytes they came from. A missing or empty file has no rows.

    Raises:
        DatasetError: the file holds something else than rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = path.read_bytes() if has_rows(path) else b""
        self.rows: tuple[Row, ...] = load_dataset(path).rows if self._bytes else ()
        self._lines = [line for line in self._bytes.split(b"\n") if line.strip()]
        if len(self._lines) != len(self.rows):
            raise DatasetError(f"{path} changed while it was read; try again")

    @property
    def digest(self) -> str:
        """SHA-256 of the file's bytes."""
        return digest_bytes(self._bytes)

    def append(self, rows: Sequence[Row]) -> RowFile:
        """Add rows at the end, whole or not at all."""
        return self._replace([*self._lines, *map(_line, rows)])

    def keep(self, wanted: Sequence[bool]) -> RowFile:
        """Keep the rows that are wanted, in their order."""
        return self._replace([line for line, keep in zip(self._lines, wanted, strict=True) if keep])

    def replace(self, rows: Mapping[int, Row]) -> RowFile:
        """Put rows in the place of others, by position from 0."""
        return self._replace(
            [_line(rows[place]) if place in rows else line for place, line in enumerate(self._lines)]
        )

    def _replace(self, lines: Sequence[bytes]) -> RowFile:
        if (self.path.read_bytes() if has_rows(self.path) else b"") != self._bytes:
            raise DatasetError(f"{self.path} was changed by someone else meanwhile; run the command again")
        # A carriage return before a line's end is white space to JSON and stays as it came.
        write_bytes_atomic(self.path, b"".join(line + b"\n" for line in lines))
        return RowFile(self.path)


def _line(row: Row) -> bytes:
    return json.dumps(row.to_dict(), ensure_ascii=False, allow_nan=False).encode("utf-8")
