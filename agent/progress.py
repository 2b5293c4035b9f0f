"""What a running flywheel tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Event:
    """Something that happened in a step of an iteration."""

    step: str
    iteration_id: str
    kind: Literal["started", "done", "note"]
    text: str = ""
    wall_s: float | None = None
