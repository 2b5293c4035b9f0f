"""The pace: how long training takes, by what was measured on the machine at hand."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Final

from tools.hardware.shape import ModelShape
from tools.recipe import TrainRecipe

__all__ = ["last_tokens_per_s", "measure_flops", "train_flops", "train_s"]

# A LoRA step: two FLOP a weight forwards, two for the gradient of what came in; frozen weights
# have none of their own. Recomputing a layer is its forward pass again.
_FLOP_A_WEIGHT: Final = 4
_RECOMPUTED_FLOP_A_WEIGHT: Final = 6
# Measured on a CPU: what of a plain product's speed the whole step reaches.
_REACHED: Final = 0.5
_TIMED_ROWS: Final = 512
_TIMED_S: Final = 0.3


def train_flops(
    recipe: TrainRecipe, shape: ModelShape, n_tokens: int, *, supervised_share: float = 0.33
) -> float:
    """Return the FLOP of training on so many tokens.

    Args:
        supervised_share: The vocabulary projection is computed for these alone.
    """
    head = shape.vocab * shape.hidden
    layers = shape.n_params - head * (1 if shape.tied else 2)
    a_weight = _RECOMPUTED_FLOP_A_WEIGHT if recipe.gradient_checkpointing else _FLOP_A_WEIGHT
    return n_tokens * (a_weight * layers + _FLOP_A_WEIGHT * head * supervised_share)


def train_s(
    recipe: TrainRecipe, shape: ModelShape, n_tokens: int, *, flops_per_s: float, reached: float = _REACHED
) -> float:
    """Return the seconds of training on so many tokens.

    Args:
        flops_per_s: Of plain products on this machine, as `measure_flops` returns it.
        reached: The part of it that a whole step reaches.
    """
    return train_flops(recipe, shape, n_tokens) / (flops_per_s * reached)


def measure_flops(shape: ModelShape, dtype: str) -> float:
    """Time the widest product of a model on this machine's device; loads torch."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.ones(_TIMED_ROWS, shape.hidden, dtype=getattr(torch, dtype), device=device)
    weight = torch.ones(shape.intermediate, shape.hidden, dtype=x.dtype, device=device)
    laps: list[float] = []
    while sum(laps) < _TIMED_S or len(laps) < 5:
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        if device == "cuda":
            torch.cuda.synchronize()
        laps.append(time.perf_counter() - started)
    return 2 * _TIMED_ROWS * shape.hidden * shape.intermediate / statistics.median(laps)


def last_tokens_per_s(runs_dir: str | Path) -> float | None:
    """Return the median speed of the newest run in a workspace's run folder; None where there is none."""
    logs = sorted(Path(runs_dir).glob("*/*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    for path in reversed(logs):
        speeds = [
            speed
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
            if (speed := _speed_in(line)) is not None
        ]
        if speeds:
            return statistics.median(speeds)
    return None


def _speed_in(line: str) -> float | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    speed = row.get("tokens_per_s") if isinstance(row, dict) else None
    return float(speed) if isinstance(speed, int | float) and speed > 0 else None
