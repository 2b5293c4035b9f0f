"""The file results.tsv: appended whole lines under a lock, read from where the last read ended."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.lineage.rows import ParsedRows, encode_header, encode_row, extend_rows, parse_header
from tools.lineage.trial import COLUMNS, Trial

_log = logging.getLogger(__name__)
_BLOCK: Final = 65_536


class TrialTable:
    """Rows of trials in one TSV file that many processes append to.

    A reader takes no lock. It keeps what it has parsed and, since the file only grows, parses
    what is new; a file whose beginning changed is read from the start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = b""
        self._settled = ParsedRows()

    def read(self) -> ParsedRows:
        """Return every row that can be read, with a problem for each line that cannot."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            data = b""
        seen, settled = self._seen, self._settled
        if not data.startswith(seen):
            seen, settled = b"", ParsedRows()
        rows = settled.copy()
        grown = extend_rows(rows, data[len(seen) :])
        for problem in rows.problems[len(settled.problems) :]:
            _log.warning("%s: %s; the row is left out", self.path, problem)
        self._seen, self._settled = data[: grown.n_bytes], grown
        return rows

    def append(self, trial: Trial) -> None:
        """Append a row, on disk when this returns. The file and its folder are made when missing."""
        with self._locked() as file:
            self._write(file, trial)

    def append_once(self, trial: Trial) -> bool:
        """Append a row unless one with its exp_id is there; return whether it was appended."""
        with self._locked() as file:
            if any(row.exp_id == trial.exp_id for row in self.read().trials):
                return False
            self._write(file, trial)
            return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                # Git replaces files: a lock on a file that has left its name guards nothing.
                if _is_at(file, self.path):
                    yield file
                    return
            finally:
                os.close(file)

    def _write(self, file: int, trial: Trial) -> None:
        columns = self._mend(file)
        block = encode_row(trial, columns or COLUMNS)
        size = os.fstat(file).st_size
        if size == 0:
            block = encode_header() + block
        try:
            _write_all(file, block)
            os.fsync(file)
        except OSError:
            # A full disk may have taken half a row; give it back before anyone reads it.
            with contextlib.suppress(OSError):
                os.ftruncate(file, size)
            raise
        if size == 0:
            _fsync_folder(self.path.parent)

    def _mend(self, file: int) -> tuple[str, ...] | None:
        """Close or set aside a last line without an end, and return the header's columns."""
        size = os.fstat(file).st_size
        start = _last_line_start(file, size)
        torn = os.pread(file, size - start, start)
        if torn:
            rows = ParsedRows(columns=parse_header(_first_line(file)) if start else None)
            extend_rows(rows, torn)
            is_header = start == 0 and set(COLUMNS) <= set(rows.columns or ()) and not rows.problems
            if rows.trials or is_header:
                _write_all(file, b"\n")
            else:
                self._set_aside(torn)
                os.ftruncate(file, start)
        return parse_header(_first_line(file))

    def _set_aside(self, torn: bytes) -> None:
        aside = self.path.with_name(self.path.name + ".torn")
        _log.warning("%s: the last line was torn; its %d bytes are now in %s", self.path, len(torn), aside)
        with aside.open("ab") as file:
            file.write(torn + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _last_line_start(file: int, size: int) -> int:
    """Return the offset after the last line end."""
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _first_line(file: int) -> bytes:
    return os.pread(file, _BLOCK, 0).split(b"\n", 1)[0]


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
