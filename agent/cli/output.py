"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

CONSOLE = Console()
ERROR_CONSOLE = Console(stderr=True)

_WHOLE_WORD: Final = 14
"""Letters."""


def print_json(value: Any) -> None:
    """Print value as JSON on stdout, and nothing else."""
    text = json.dumps(plain(value), ensure_ascii=False, indent=2, allow_nan=False)
    CONSOLE.out(text, highlight=False)


def plain(value: Any) -> Any:
    """Return value as JSON's own types."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path | date):
        return str(value)
    return value


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Return a table whose cells are plain text: nothing in them is markup."""
    made = Table(title=title, title_justify="left", show_lines=False)
    for number, column in enumerate(columns):
        words = " ".join(str(row[number]) for row in rows if row[number] is not None).split()
        # Words stay whole where the width allows; what is longer, a path say, is folded.
        longest = max(map(len, words), default=0)
        made.add_column(column, overflow="fold", min_width=min(longest, _WHOLE_WORD))
    for row in rows:
        made.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return made


def percent(score: float | None) -> str:
    """Return a score in [0, 1] as a percentage with one decimal, or a dash when unknown."""
    return "–" if score is None else f"{100 * score:.1f}%"


def points(gain: float | None) -> str:
    """Return a difference of scores in points, with its sign."""
    return "–" if gain is None else f"{100 * gain:+.1f}"


def duration(seconds: float | None) -> str:
    """Return seconds as `2 min 05 s`."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
