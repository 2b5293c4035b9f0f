"""The origin of a row that a teacher made or mended, written into its meta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from tools.rows import Row

__all__ = ["GENERATED", "MENDED", "Origin", "is_generated"]

GENERATED: Final = "generated"
"""Key of `meta` in a row that a teacher wrote."""
MENDED: Final = "mended"
"""Key of `meta` in a row that a person wrote and a teacher corrected."""


@dataclass(frozen=True)
class Origin:
    """Who made a row, with which words, when, and in which batch of which job."""

    generator: str
    """The command: generate, augment, patch or audit."""
    model: str
    prompt_digest: str
    """SHA-256 over the whole prompt."""
    created_at: str
    batch: int
    job: str

    def to_meta(self, key: str = GENERATED, **more: Any) -> dict[str, Any]:
        """Return it as it stands in a row's meta."""
        return {key: {**asdict(self), **more}}


def is_generated(row: Row) -> bool:
    """Say whether a teacher wrote the row."""
    origin = row.meta.get(GENERATED)
    return isinstance(origin, Mapping) and "generator" in origin and "prompt_digest" in origin
