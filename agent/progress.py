"""What a running flywheel tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agent.plan import BudgetLeft


@dataclass(frozen=True)
class Event:
    """Something that happened in a step of an iteration."""

    step: str
    iteration_id: str
    kind: Literal["started", "done", "note", "budget"]
    text: str = ""
    wall_s: float | None = None
    left: BudgetLeft | None = None
    """Of the run's budget, where that is what the event is about."""
