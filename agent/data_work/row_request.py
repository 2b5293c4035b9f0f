"""A request for rows, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.data_work.target import Target
from agent.teachers.meter import Spent
from tools.errors import DatasetError

__all__ = ["JobProgress", "MadeRows", "RowRequest", "StopReason"]

StopReason = Literal["done", "cap", "dry", "outage"]


@dataclass(frozen=True)
class RowRequest:
    """How many rows, about what, and where they go."""

    command: Literal["generate", "augment", "patch"]
    n: int
    gaps: tuple[str, ...]
    """What the rows should be about; batches take them in turn."""
    target: Target
    batch_size: int = 50
    concurrency: int = 4
    request: str | None = None
    """The request of the queue that the rows are made for, as it stands in their origin."""

    def __post_init__(self) -> None:
        if not self.gaps or min(self.n, self.batch_size, self.concurrency) < 1:
            raise DatasetError(
                f"n is {self.n}, batch size {self.batch_size}, concurrency {self.concurrency}; each from 1"
            )


@dataclass(frozen=True)
class JobProgress:
    """How far a job is."""

    done: int
    wanted: int
    refused: int
    spent: Spent


@dataclass(frozen=True)
class MadeRows:
    """What a job made. Nothing in it holds text of a judged row."""

    job_id: str
    command: str
    target: Path
    wanted: int
    added: int
    refused: Mapping[str, int]
    """Rows that were not taken, by reason."""
    calls: int
    tokens: int
    stopped_by: StopReason
    reason: str
    log: Path
    leaks: Path | None
    """Where the pairs of rows refused as leaks are kept: for eyes on this machine only."""
    notes: tuple[str, ...] = ()
