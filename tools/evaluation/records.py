"""Records: JSON objects, one a line, from programs whose files may hold other lines too."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Records", "load_records"]


@dataclass(frozen=True)
class Records:
    """The objects of a file or a sequence, and how many entries were none."""

    rows: tuple[dict[str, Any], ...]
    n_malformed: int


def load_records(source: Iterable[Any] | str | Path) -> Records:
    """Take the objects out of a JSONL file, or out of a sequence in memory.

    A torn, foreign or too deeply nested line costs itself alone and is counted.

    Raises:
        FileNotFoundError: source is a path without a file.
    """
    if isinstance(source, str | Path):
        lines = (line for line in Path(source).read_bytes().split(b"\n") if line.strip())
        values: list[Any] = [_parse(line) for line in lines]
    else:
        values = list(source)
    rows = tuple(value for value in values if isinstance(value, dict))
    return Records(rows, len(values) - len(rows))


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
