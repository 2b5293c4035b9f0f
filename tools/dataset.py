"""A dataset: conversations in JSONL, one object a line, checked whole before anything uses it."""

from __future__ import annotations

import hashlib
import json
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tools.errors import DatasetError
from tools.files import digest_json, write_text_atomic
from tools.rows import ROLES, Message, Row, parse_row

__all__ = [
    "ROLES",
    "Dataset",
    "Message",
    "Row",
    "check_dataset",
    "data_digest",
    "load_dataset",
    "write_dataset",
]

PROBLEMS_SHOWN: Final = 50
MAX_LINE_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True)
class Dataset:
    """The rows of one file, in its order."""

    path: Path
    rows: tuple[Row, ...]
    digest: str
    """SHA-256 over the rows; whitespace, key order and line ends of the file do not move it."""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


def load_dataset(path: str | Path, *, require_answer: bool = True) -> Dataset:
    """Read every row of a JSONL file, or none.

    A row is `{"messages": [{"role", "content"}, ...]}` or a pair of `prompt` (or `input`) and
    `completion` (or `output`); `id`, `tags` and `meta` are optional, and any other key moves
    into `meta`. A row without an id gets one from its content. Blank lines are skipped.

    Args:
        path: A regular file, UTF-8 without a byte order mark.
        require_answer: Refuse rows whose last turn is not the assistant's.
    Raises:
        DatasetError: lists every bad row by file and line; `.problems` holds all of them, the
            message the first fifty and the count.
    """
    rows, problems = _scan(Path(path), require_answer)
    if problems:
        raise _error(path, problems)
    return Dataset(Path(path), rows, _digest(rows))


def check_dataset(path: str | Path, *, require_answer: bool = True) -> tuple[str, ...]:
    """Return what is wrong with a file, one sentence per bad row; empty when it loads."""
    return _scan(Path(path), require_answer)[1]


def write_dataset(path: str | Path, rows: Iterable[Row]) -> Path:
    """Replace path with rows, whole, after the checks that reading them back would make.

    Raises:
        DatasetError: a row that `load_dataset` would refuse; nothing is written then.
    """
    lines: list[str] = []
    reader = _Reader(Path(path), require_answer=False)
    for number, row in enumerate(rows, start=1):
        try:
            line = json.dumps(row.to_dict(), ensure_ascii=False, allow_nan=False)
            reader.take(number, line.encode("utf-8"))
        except (TypeError, ValueError, RecursionError) as err:
            reader.problem(number, f"row {row.id!r} cannot be written as JSON in UTF-8 ({err})")
            continue
        lines.append(line + "\n")
    if not lines and not reader.problems:
        reader.problems.append(f"{path}: no rows to write; a dataset holds at least one")
    if reader.problems:
        raise _error(path, tuple(reader.problems))
    return write_text_atomic(path, "".join(lines))


def data_digest(paths: Mapping[str, Path]) -> str:
    """Return one SHA-256 over all splits: the name and the rows of each."""
    return digest_json(
        {split: load_dataset(path, require_answer=False).digest for split, path in paths.items()}
    )


class _Reader:
    """Takes lines one at a time and keeps the rows, the problems and the ids seen."""

    def __init__(self, path: Path, *, require_answer: bool) -> None:
        self.path = path
        self.require_answer = require_answer
        self.rows: list[Row] = []
        self.problems: list[str] = []
        self._line_of_id: dict[str, int] = {}
        self._times_seen: Counter[str] = Counter()

    def problem(self, number: int, text: str) -> None:
        self.problems.append(f"{self.path}:{number}: {text}")

    def take(self, number: int, line: bytes) -> None:
        try:
            row = parse_row(line, require_answer=self.require_answer)
        except DatasetError as err:
            for text in err.problems:
                self.problem(number, text)
            return
        if not row.id:
            row = replace(row, id=self._made_id(row))
        first = self._line_of_id.setdefault(row.id, number)
        if first != number:
            self.problem(number, f"id {row.id!r} is taken by line {first}; ids are unique within a file")
        else:
            self.rows.append(row)

    def _made_id(self, row: Row) -> str:
        base = "row-" + digest_json([[turn.role, turn.content] for turn in row.messages])[:16]
        # Repeated rows without ids are a way to weigh them; each still needs a name of its own.
        self._times_seen[base] += 1
        count = self._times_seen[base]
        return base if count == 1 else f"{base}-{count}"


def _scan(path: Path, require_answer: bool) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    reader = _Reader(path, require_answer=require_answer)
    try:
        _check_regular(path)
        for number, line in _lines(path):
            if line is None:
                reader.problem(
                    number, f"longer than {MAX_LINE_BYTES} bytes; one row a line, shorter than that"
                )
            elif line.strip():
                reader.take(number, line)
    except OSError as err:
        return (), (f"{path}: cannot be read ({err}); give the path of a JSONL file",)
    if not reader.rows and not reader.problems:
        reader.problems.append(f"{path}: no rows; a dataset holds at least one line with a JSON object")
    return tuple(reader.rows), tuple(reader.problems)


def _check_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except ValueError as err:
        raise OSError(f"no path of a file: {err}") from err
    # A pipe or a device would block or never end.
    if not stat.S_ISREG(mode):
        raise OSError("a folder, a pipe or a device, where a regular file is needed")


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield each line with its number from 1; None stands for one over the limit."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            whole = len(line) <= MAX_LINE_BYTES
            yield number, line if whole else None
            while not whole and line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)


def _digest(rows: Sequence[Row]) -> str:
    total = hashlib.sha256()
    for row in rows:
        total.update(digest_json(row.to_dict()).encode("ascii"))
    return total.hexdigest()


def _error(path: str | Path, problems: tuple[str, ...]) -> DatasetError:
    shown = "\n".join(f"  {text}" for text in problems[:PROBLEMS_SHOWN])
    rest = len(problems) - PROBLEMS_SHOWN
    more = f"\n  and {rest} more" if rest > 0 else ""
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return DatasetError(f"{path} cannot be used, {count}:\n{shown}{more}", problems=problems)
