"""The log that makes a probe resumable: one line per row, written as soon as there is a row."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tools.errors import ProbeError
from tools.files import append_line, digest_file, digest_json, read_jsonl

__all__ = ["RowForm", "RowLog", "fingerprint_model"]

logger = logging.getLogger(__name__)


class _Row(Protocol):
    @property
    def error(self) -> str | None: ...


R = TypeVar("R", bound=_Row)


@dataclass(frozen=True)
class RowForm(Generic[R]):
    """How the rows of one kind of probe are written, read and told apart."""

    to_plain: Callable[[R], dict[str, Any]]
    from_plain: Callable[[Any, str], R]
    """Takes the JSON and a name for it in errors; raises ProbeError."""
    key_of: Callable[[R], str]


@dataclass(frozen=True)
class RowLog(Generic[R]):
    """A JSONL file of rows, each with what it was made from.

    A torn line costs the row in it alone.
    """

    path: Path
    origin: Mapping[str, Any]
    """What a row depends on besides its question: model, adapter, budget, sampling, seed, judge."""
    form: RowForm[R]

    def append(self, row: R, question: str) -> None:
        """Write one row, whole and fsynced, with the text that was asked."""
        plain = self.form.to_plain(row)
        line = {"origin": dict(self.origin), "question": _digest(question), "row": plain}
        append_line(self.path, json.dumps(line, ensure_ascii=False, allow_nan=False))

    def finished(self, questions: Mapping[str, str]) -> dict[str, R]:
        """Return the rows that need not be made again, by key; rows that failed are tried again.

        Args:
            questions: The text of each question by its key; a row made from another is left aside.
        Raises:
            ProbeError: the file cannot be read, or holds rows of another origin: another model or
                adapter, another budget, sampling or seed, another judge.
        """
        # A device or a pipe would never end.
        if self.path.exists() and not self.path.is_file():
            raise ProbeError(f"{self.path} cannot be read as a log of rows: it is no regular file")
        try:
            lines = read_jsonl(self.path)
        except OSError as err:
            raise ProbeError(f"{self.path} cannot be read as a log of rows: {err}") from err
        for problem in lines.problems:
            logger.warning("%s; its row is made again", problem)
        found: dict[str, R] = {}
        for number, line in enumerate(lines.rows, start=1):
            row = self._row(line, f"{self.path}: entry {number}")
            key = self.form.key_of(row)
            if key not in questions or line.get("question") != _digest(questions[key]):
                continue
            if row.error is None:
                found[key] = row
        return found

    def _row(self, line: Any, where: str) -> R:
        if not isinstance(line, dict) or not isinstance(line.get("origin"), dict):
            raise ProbeError(f"{where} is no row of a probe; give a file of its own to resume from")
        theirs, ours = line["origin"], dict(self.origin)
        other = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
        if other:
            differences = "; ".join(f"{key} was {theirs.get(key)!r}, is {ours.get(key)!r}" for key in other)
            raise ProbeError(
                f"{where} was made otherwise ({differences}); resume with what it was made with, or give "
                "another file"
            )
        return self.form.from_plain(line.get("row"), where)


def fingerprint_model(name: str) -> str | None:
    """Return what changes when a model or adapter on disk is replaced; None for a Hub id.

    Small files count by content. Weights count by size and time, since reading them all would
    take as long as answering; an adapter's weights count by content too.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return digest_json(_stamp(path))
    if not path.is_dir():
        return None
    parts = {}
    for item in sorted(path.iterdir()):
        if item.is_file():
            read = item.stat().st_size < 1 << 20 or item.name.startswith("adapter_model")
            parts[item.name] = digest_file(item) if read else _stamp(item)
    return digest_json(parts)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _digest(question: str) -> str:
    return digest_json(question)
