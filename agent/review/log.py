"""The log of rejections: what a person took back, and why, beside the lineage that it speaks of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tools.files import append_line, read_jsonl

__all__ = ["REVIEWS_FILE", "ReviewNote", "append_review", "read_reviews"]

REVIEWS_FILE: Final = "lineage/reviews.jsonl"


@dataclass(frozen=True)
class ReviewNote:
    """One rejection."""

    iteration: str
    review: str
    """What became of it: `rejected`."""
    reason: str
    by: str
    at: str
    commit: str
    """The commit that was rejected."""


def append_review(root: Path, note: ReviewNote) -> None:
    """Append a rejection to a workspace's log."""
    append_line(root / REVIEWS_FILE, json.dumps(asdict(note), ensure_ascii=False))


def read_reviews(root: Path) -> tuple[ReviewNote, ...]:
    """Return a workspace's rejections, oldest first; a line that is none is left out."""
    found = (_parse(row) for row in read_jsonl(root / REVIEWS_FILE).rows)
    return tuple(note for note in found if note is not None)


def _parse(row: Any) -> ReviewNote | None:
    try:
        note = ReviewNote(**row)
    except TypeError:
        return None
    return note if all(isinstance(value, str) for value in asdict(note).values()) else None
