"""What a worker hands back, as frozen records that are written as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["AdapterResult", "EvaluateOutcome", "MemberResult", "SplitScore", "TrainOutcome", "WorkerUsage"]

MemberStatus = Literal["done", "stopped_early", "halted", "stopped", "failed"]


@dataclass(frozen=True)
class WorkerUsage:
    """What a worker held, and for how long: loading, training and scoring together."""

    wall_s: float
    gpus: int


@dataclass(frozen=True)
class MemberResult:
    """How one trial of a stack ended.

    `stopped` was asked to end and can be resumed; `stopped_early` saw its score stall; `halted`
    left the search behind better ones.
    """

    trial_id: str
    status: MemberStatus
    steps: int
    total_steps: int
    final_iter: int | None
    """Step of the last checkpoint."""
    best_iter: int | None
    """Step of the checkpoint with the best mid-run score; None when none was scored."""
    best_score: float | None
    adapter_dir: str | None
    """The best checkpoint where one was scored, else the last; None when none was saved."""
    tokens: int
    train_s: float
    final_loss: float | None
    error: str | None = None
    """Why it failed or was halted."""
    prefix_tokens_saved: int = 0
    """Tokens that were spared the layers below the lowest adapted one, since this process began."""


@dataclass(frozen=True)
class TrainOutcome:
    members: tuple[MemberResult, ...]
    base_load_s: float
    peak_memory_bytes: int
    saved_steps: int = 0
    """Optimizer steps that halted members were spared."""
    usage: WorkerUsage | None = None


@dataclass(frozen=True)
class SplitScore:
    """Rows of a split scored for one adapter."""

    mean: float
    n: int
    eval_s: float


@dataclass(frozen=True)
class AdapterResult:
    """How one adapter did on every split; error says why it is not on all of them."""

    trial_id: str
    seed: int
    splits: Mapping[str, SplitScore]
    eval_s: float
    error: str | None = None


@dataclass(frozen=True)
class EvaluateOutcome:
    adapters: tuple[AdapterResult, ...]
    base_load_s: float
    peak_memory_bytes: int
    usage: WorkerUsage | None = None
