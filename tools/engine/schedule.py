"""The learning rate of a step."""

from __future__ import annotations

import math

from tools.recipe import TrainRecipe

__all__ = ["learning_rate_at"]


def learning_rate_at(recipe: TrainRecipe, step: int, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0, of total_steps.

    Warm-up rises in equal parts and reaches the full rate at its last step, so that no step is
    spent on a rate of zero; the decay then ends one step short of min_learning_rate.
    """
    peak, floor = recipe.learning_rate, recipe.min_learning_rate
    warmup = min(round(recipe.lr_warmup_fraction * total_steps), total_steps - 1)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if recipe.lr_schedule == "constant":
        return peak
    share = 1 - progress if recipe.lr_schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return floor + (peak - floor) * share
