"""The text of results.tsv: trials to lines, and lines, torn ones among them, to trials."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tools.errors import LineageError
from tools.lineage.trial import COLUMNS, Trial

# Python's csv module, with which others read these files, refuses a longer cell.
MAX_CELL_CHARS: Final = 131_072
# A quoted cell may hold line breaks. A quote that a torn line left open must not swallow the
# file, so the search for its end stops here.
_MAX_ROW_LINES: Final = 1000
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

    def copy(self) -> ParsedRows:
        """Return the same rows in lists of their own."""
        return ParsedRows(list(self.trials), list(self.problems), self.columns, self.n_lines, self.n_bytes)


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
    Trial.from_row(cells)
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
    settled: ParsedRows | None = None
    index = 0
    while index < len(lines):
        raw = lines[index]
        if index == end:
            settled = settled or rows.copy()
            if not raw:
                break
        taken = 1
        if b'"' in raw and raw.count(b'"') % 2:
            taken, is_open = _span(lines, index, end)
            if is_open:
                settled = settled or rows.copy()
        taken = _take(rows, lines, index, taken)
        rows.n_lines += taken
        rows.n_bytes += taken + (len(raw) if taken == 1 else sum(map(len, lines[index : index + taken])))
        index += taken
    return settled or rows


def _span(lines: list[bytes], index: int, end: int) -> tuple[int, bool]:
    """Return how many lines a row with an open quote may span, and whether its end is not there yet."""
    stop = min(index + _MAX_ROW_LINES, end)
    for later in range(index + 1, stop):
        if lines[later].count(b'"') % 2:
            return later - index + 1, False
    return 1, stop == end


def _take(rows: ParsedRows, lines: list[bytes], index: int, taken: int) -> int:
    """Add the row that spans `taken` lines; fall back to its first line alone. Return the lines used."""
    raw = lines[index] if taken == 1 else b"\n".join(lines[index : index + taken])
    if not raw.strip():
        return taken
    try:
        _add(rows, raw)
    except (LineageError, UnicodeDecodeError, csv.Error) as err:
        rows.problems.append(f"line {rows.n_lines + 1}: {err}")
        return 1
    return taken


def _add(rows: ParsedRows, raw: bytes) -> None:
    if rows.columns is None or raw.startswith(b"exp_id\t"):
        header = parse_header(raw)
        if header is not None:
            # Writers that race for a fresh file can leave a second header; it holds no trial.
            rows.columns = rows.columns or header
            return
    rows.columns = rows.columns or COLUMNS
    cells = _split_cells(raw.decode("utf-8"))
    if len(cells) != len(rows.columns):
        raise LineageError(f"{len(cells)} cells where the header has {len(rows.columns)}; the line is torn")
    if rows.columns == COLUMNS:
        rows.trials.append(Trial.from_cells(cells))
    else:
        rows.trials.append(Trial.from_row(dict(zip(rows.columns, cells, strict=True))))


def _split_cells(text: str) -> list[str]:
    text = text.removesuffix("\r")
    if '"' not in text:
        return text.split("\t")
    parsed = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    if len(parsed) != 1:
        raise LineageError("a quote is left open; the line is torn")
    return parsed[0]


def _join_cells(cells: Sequence[str]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter="\t", lineterminator="\n").writerow(cells)
    return out.getvalue()
