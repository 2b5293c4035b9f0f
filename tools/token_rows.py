"""Rows that are tokens already: plain text to learn whole, with no conversation around it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.errors import DatasetError
from tools.files import digest_json, write_text_atomic

__all__ = ["SUFFIX", "TokenRow", "TokenRows", "is_token_file", "load_token_rows", "write_token_rows"]

SUFFIX: Final = ".tokens.jsonl"
_PROBLEMS_SHOWN: Final = 50


@dataclass(frozen=True)
class TokenRow:
    """A stretch of a document. Every token but the first is learned from those before it."""

    id: str
    input_ids: tuple[int, ...]


@dataclass(frozen=True)
class TokenRows:
    """The rows of a file, in its order."""

    rows: tuple[TokenRow, ...]
    digest: str
    """SHA-256 over the rows."""


def is_token_file(path: str | Path) -> bool:
    """Return whether a path names token rows: its name says so."""
    return str(path).endswith(SUFFIX)


def write_token_rows(path: Path, rows: Iterable[TokenRow]) -> Path:
    """Replace path with rows.

    Raises:
        DatasetError: the name does not end as those of token rows do.
    """
    if not is_token_file(path):
        raise DatasetError(f"{path} must end in {SUFFIX}: the name tells what its rows are")
    lines = [json.dumps({"id": row.id, "input_ids": list(row.input_ids)}) + "\n" for row in rows]
    return write_text_atomic(path, "".join(lines))


def load_token_rows(path: str | Path, *, vocab_size: int | None = None) -> TokenRows:
    """Read what `write_token_rows` wrote, or nothing.

    Args:
        vocab_size: Token ids from this number on are refused.
    Raises:
        DatasetError: lists every bad row by file and line.
    """
    problems: list[str] = []
    rows: list[TokenRow] = []
    seen: set[str] = set()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise DatasetError(f"{path} cannot be read: {err}") from err
    for number, line in enumerate(text.splitlines(), start=1):
        row, problem = _parse(line, vocab_size)
        if row is not None and row.id in seen:
            problem = f"id {row.id!r} stands in the file twice"
        if row is None or problem:
            problems.append(f"{path}:{number}: {problem}")
            continue
        seen.add(row.id)
        rows.append(row)
    if problems or not rows:
        shown = "\n".join(problems[:_PROBLEMS_SHOWN]) or f"{path} holds no rows"
        raise DatasetError(f"{len(problems)} bad token rows\n{shown}", problems=problems)
    return TokenRows(tuple(rows), digest_json([[row.id, row.input_ids] for row in rows]))


def _parse(line: str, vocab_size: int | None) -> tuple[TokenRow | None, str]:
    try:
        data: Any = json.loads(line)
    except (ValueError, RecursionError) as err:
        return None, f"no JSON object on one line ({err})"
    if not isinstance(data, dict) or data.keys() != {"id", "input_ids"}:
        return None, "an object with `id` and `input_ids` is needed, and nothing else"
    name, ids = data["id"], data["input_ids"]
    if not isinstance(name, str) or not name:
        return None, "`id` must be a text"
    limit = vocab_size if vocab_size is not None else 2**31
    fine = isinstance(ids, list) and all(type(token) is int and 0 <= token < limit for token in ids)
    if not fine or len(ids) < 2:
        return None, f"`input_ids` must be two token ids at least, whole numbers in [0, {limit})"
    return TokenRow(name, tuple(ids)), ""
