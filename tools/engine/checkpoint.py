"""Checkpoints of one member: whole or absent, and the tracker files that name them."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from tools.engine.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_weights, write_adapter
from tools.engine.lora import Adapter
from tools.errors import ModelError, TrainError
from tools.files import write_text_atomic

__all__ = [
    "BEST_FILE",
    "LATEST_FILE",
    "Checkpoint",
    "TrainerState",
    "find_checkpoint",
    "iter_dir",
    "rotate",
    "save_checkpoint",
]

logger = logging.getLogger(__name__)

LATEST_FILE: Final = "latest_checkpointed_iteration.txt"
BEST_FILE: Final = "best_checkpointed_iteration.txt"
STATE_FILE: Final = "trainer_state.pt"
_ITER: Final = re.compile(r"iter_(\d{7,})\Z")
_PARTIAL: Final = ".partial-"
# What torch.load raises depends on the byte at which a file is torn.
_LOAD_ERRORS: Final = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    pickle.PickleError,
)


@dataclass(frozen=True)
class TrainerState:
    """All that a member needs, besides its weights, to go on as if nothing had happened."""

    step: int
    """Optimizer steps done; also the data cursor."""
    recipe_digest: str
    data_digest: str
    base_model: str
    total_steps: int
    optimizer: dict[str, Any]
    dropout_generator: torch.Tensor
    tokens: int
    train_s: float
    best_score: float | None
    best_step: int | None
    evals_without_gain: int
    scored_step: int | None
    rung_scores: dict[int, float] = field(default_factory=dict)
    """Scores that a search compared, by step."""
    rung_losses: dict[int, float] = field(default_factory=dict)
    """The losses beside them."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    state: TrainerState


def iter_dir(run_dir: str | Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return Path(run_dir) / f"iter_{step:07d}"


def save_checkpoint(run_dir: Path, adapter: Adapter, state: TrainerState, base_name: str) -> Path:
    """Write a checkpoint, then the tracker that names it. Killed at any line, a reader finds the
    checkpoint before or this one, never a part."""
    target = iter_dir(run_dir, state.step)
    partial = run_dir / f"{_PARTIAL}{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_adapter(partial, adapter, base_name)
    torch.save(asdict(state), partial / STATE_FILE)
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG, STATE_FILE):
        _fsync(partial / name)
    _fsync(partial)
    # A folder of this step is left from a run that died before its tracker was written.
    if target.exists():
        shutil.rmtree(target)
    os.rename(partial, target)
    _fsync(run_dir)
    write_text_atomic(run_dir / LATEST_FILE, f"{state.step}\n")
    publish_best(run_dir, state.best_step)
    return target


def publish_best(run_dir: Path, best_step: int | None) -> None:
    """Name the best checkpoint in its tracker, if it is on disk and not named already."""
    tracker = run_dir / BEST_FILE
    if best_step is not None and iter_dir(run_dir, best_step).is_dir() and read_tracker(tracker) != best_step:
        write_text_atomic(tracker, f"{best_step}\n")


def find_checkpoint(run_dir: Path, adapter: Adapter) -> Checkpoint | None:
    """Load the newest whole checkpoint into adapter and return it; None when there is none.

    The tracker's checkpoint comes first. One that cannot be read is reported and the next
    older one taken. Leavings of a killed writer are removed.
    """
    for partial in run_dir.glob(f"{_PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)
    latest = read_tracker(run_dir / LATEST_FILE)
    if latest is None:
        return None
    for step in sorted((step for step in saved_steps(run_dir) if step <= latest), reverse=True):
        folder = iter_dir(run_dir, step)
        try:
            state = _read_state(folder, step)
            load_weights(adapter, folder)
        except (TrainError, ModelError) as err:
            logger.warning("checkpoint %s is not used: %s", folder, err)
            continue
        return Checkpoint(folder, state)
    return None


def rotate(run_dir: Path, *, most_recent_k: int, best_step: int | None) -> None:
    """Remove old checkpoints; the most recent, the best and the tracker's stay. -1 keeps all."""
    if most_recent_k < 0:
        return
    steps = sorted(saved_steps(run_dir), reverse=True)
    kept = {*steps[: max(1, most_recent_k)], best_step, read_tracker(run_dir / LATEST_FILE)}
    for step in steps:
        if step not in kept:
            shutil.rmtree(iter_dir(run_dir, step), ignore_errors=True)


def read_tracker(path: Path) -> int | None:
    """Return the step that a tracker file names; None when it is missing or no number."""
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def saved_steps(run_dir: Path) -> list[int]:
    """Return the steps that have a folder."""
    if not run_dir.is_dir():
        return []
    matches = (_ITER.match(entry.name) for entry in run_dir.iterdir())
    return [int(match[1]) for match in matches if match]


def _read_state(folder: Path, step: int) -> TrainerState:
    try:
        state = TrainerState(**torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True))
    except _LOAD_ERRORS as err:
        raise TrainError(f"{folder / STATE_FILE} cannot be read: {err!r}") from err
    if state.step != step:
        raise TrainError(f"{folder} holds the state of step {state.step}")
    return state


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
