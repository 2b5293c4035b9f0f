"""The text of results.tsv: trials to lines, and lines, torn ones among them, to trials."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tools.errors import LineageError
from tools.lineage.trial import COLUMNS, DEFAULT_CELLS, Trial, build_trials

# Python's csv module, with which others read these files, refuses a longer cell.
MAX_CELL_CHARS: Final = 131_072
# A quoted cell may hold line breaks. A quote that a torn line left open must not swallow the
# file, so the search for its end stops here.
_MAX_ROW_LINES: Final = 1000
_BATCH_ROWS: Final = 1024
_PLAIN_TABS: Final = len(COLUMNS) - 1
_LINE_BREAKS: Final = re.compile(r"[\r\n]+")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


@dataclass
class ParsedRows:
    """The trials of a text, and a sentence for every line that held none."""

    trials: list[Trial] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    columns: tuple[str, ...] | None = None
    n_lines: int = 0
    n_bytes: int = 0

    def copy(self, *, more_bytes: int = 0) -> ParsedRows:
        """Return the same rows in lists of their own, from so many more bytes."""
        return ParsedRows(
            list(self.trials), list(self.problems), self.columns, self.n_lines, self.n_bytes + more_bytes
        )


def encode_row(trial: Trial, columns: Sequence[str] = COLUMNS) -> bytes:
    """Return the trial as one line of UTF-8 with its line end, in the order of columns.

    Line breaks inside a text become a space: one row is one line, so that a crash can cost no
    more than a line. Quotes and tabs are quoted as the csv module does.

    Raises:
        LineageError: a value that could not be read back, or columns that would lose one.
    """
    for name in ("exp_id", "parent_exp"):
        value = getattr(trial, name)
        if not isinstance(value, str) or _CONTROL.search(value):
            raise LineageError(f"{name} is {value!r}; it must be text without control characters")
    if not trial.exp_id:
        raise LineageError("exp_id is empty; every trial needs a name of its own")
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise LineageError(f"the file has no column {missing}; add them to its header or use another folder")
    cells = dict(zip(COLUMNS, (_LINE_BREAKS.sub(" ", cell) for cell in trial.to_row()), strict=True))
    for name, cell in cells.items():
        if len(cell) > MAX_CELL_CHARS:
            raise LineageError(f"{name} has {len(cell)} characters; at most {MAX_CELL_CHARS}: shorten it")
    Trial.from_cells(list(cells.values()))
    try:
        return _join_cells([cells.get(name, "") for name in columns]).encode("utf-8")
    except UnicodeEncodeError as err:
        raise LineageError(f"trial {trial.exp_id!r} holds text that is no Unicode: {err}") from err


def encode_header() -> bytes:
    """Return the header line."""
    return _join_cells(COLUMNS).encode("utf-8")


def parse_header(line: bytes) -> tuple[str, ...] | None:
    """Return the column names of a header line, or None if the line is none."""
    try:
        cells = line.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n").split("\t")
    except UnicodeDecodeError:
        return None
    names = tuple(cell.strip('"') for cell in cells)
    return names if "exp_id" in names else None


def extend_rows(rows: ParsedRows, data: bytes) -> ParsedRows:
    """Parse data into rows; return the part of it that more data cannot change.

    Args:
        rows: Gains the trials and problems of data.
        data: What follows the bytes that rows came from, beginning at a line start.
    Returns:
        A copy of rows up to the first line that is still open: one without a line end, or one
        with a quote that may yet be closed. Continue from there when the file has grown.
    """
    lines = data.split(b"\n")
    end = len(lines) - 1
    batch = _Batch(rows)
    settled: ParsedRows | None = None
    index = 0
    while index < end + bool(lines[end]):
        if index < end and batch.take_plain(lines[index]):
            rows.n_lines += 1
            index += 1
            continue
        taken, is_open = _span(lines, index, end)
        if is_open and settled is None:
            batch.flush()
            settled = rows.copy(more_bytes=_size(lines[:index]))
        taken = batch.take(lines, index, taken)
        rows.n_lines += taken
        index += taken
    batch.flush()
    return settled or rows.copy(more_bytes=_size(lines[:end]))


def _size(lines: list[bytes]) -> int:
    return sum(map(len, lines)) + len(lines)


def _span(lines: list[bytes], index: int, end: int) -> tuple[int, bool]:
    """Return how many lines the row at index spans, and whether what follows may change that."""
    raw = lines[index]
    if b'"' not in raw or raw.count(b'"') % 2 == 0:
        return 1, index == end
    stop = min(index + _MAX_ROW_LINES, end)
    for later in range(index + 1, stop):
        if lines[later].count(b'"') % 2:
            return later - index + 1, False
    return 1, stop == end


class _Batch:
    """Rows split into cells, turned into trials many at a time."""

    def __init__(self, rows: ParsedRows) -> None:
        self._rows = rows
        # The cells of the rows end to end: a list a row would cost more than all the rest.
        self._cells: list[str] = []
        self._numbers: list[int] = []

    def take_plain(self, raw: bytes) -> bool:
        """Take a whole line that has every cell and no quote; return whether it was one."""
        if b'"' in raw or raw.count(b"\t") != _PLAIN_TABS or self._rows.columns != COLUMNS:
            return False
        if raw.startswith(b"exp_id\t") or raw.endswith(b"\r"):
            return False
        try:
            self._cells += raw.decode("utf-8").split("\t")
        except UnicodeDecodeError:
            return False
        self._count()
        return True

    def take(self, lines: list[bytes], index: int, taken: int) -> int:
        """Take the row of `taken` lines, else its first line alone; return the lines used."""
        if taken > 1:
            try:
                self._add(b"\n".join(lines[index : index + taken]))
                return taken
            except ValueError:
                # The quote belongs to a torn line, and what follows are rows of their own.
                pass
        try:
            self._add(lines[index])
        except ValueError as err:
            self.flush()
            self._rows.problems.append(f"line {self._rows.n_lines + 1}: {err}")
        return 1

    def flush(self) -> None:
        """Turn what waits into trials."""
        rows, width = self._rows, len(COLUMNS)
        try:
            rows.trials += build_trials(self._cells)
        except (ValueError, KeyError):
            for index, number in enumerate(self._numbers):
                try:
                    rows.trials.append(Trial.from_cells(self._cells[index * width : (index + 1) * width]))
                except LineageError as err:
                    rows.problems.append(f"line {number}: {err}")
        self._cells, self._numbers = [], []

    def _count(self) -> None:
        self._numbers.append(self._rows.n_lines + 1)
        if len(self._numbers) == _BATCH_ROWS:
            self.flush()

    def _add(self, raw: bytes) -> None:
        rows = self._rows
        if rows.columns is None or raw.startswith(b"exp_id\t"):
            header = parse_header(raw)
            if header is not None:
                # Writers that race for a fresh file can leave a second header; it holds no trial.
                rows.columns = rows.columns or header
                return
        if not raw.strip():
            return
        columns = rows.columns = rows.columns or COLUMNS
        cells = _split_cells(raw.decode("utf-8"))
        if len(cells) != len(columns):
            raise LineageError(f"{len(cells)} cells where the header has {len(columns)}; the line is torn")
        if columns != COLUMNS:
            named = DEFAULT_CELLS | dict(zip(columns, cells, strict=True))
            cells = [named[name] for name in COLUMNS]
        self._cells += cells
        self._count()


def _split_cells(text: str) -> list[str]:
    parts = text.removesuffix("\r").split("\t")
    if '"' not in text:
        return parts
    waiting = iter(parts)
    return [_unquote(part, waiting) if part.startswith('"') else part for part in waiting]


def _unquote(part: str, following: Iterator[str]) -> str:
    """Return the text of a quoted cell; the parts that follow are its own while the quote is open."""
    while part.count('"') % 2:
        more = next(following, None)
        if more is None:
            raise LineageError("a quote is left open; the line is torn")
        part += "\t" + more
    inner = part[1:-1]
    if not part.endswith('"') or '"' in inner.replace('""', ""):
        raise LineageError(f"a quote ends inside a cell: {part[:60]!r}; the line is torn")
    return inner.replace('""', '"')


def _join_cells(cells: Sequence[str]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter="\t", lineterminator="\n").writerow(cells)
    return out.getvalue()
