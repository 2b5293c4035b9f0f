"""The moves of a search: its recipes, each judged once, however many seeds it was trained on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from statistics import fmean

from agent.plan import TrialSummary
from agent.planners.candidates import recipe_key
from tools.recipe import TrainRecipe

__all__ = ["Move", "list_moves", "technique_of"]


@dataclass(frozen=True)
class Move:
    """One recipe over its seeds."""

    trial_ids: tuple[str, ...]
    recipe: TrainRecipe
    score: float | None
    """Mean over the seeds; None where it was never scored."""
    gain: float | None
    """Last measured gain over the incumbent of its time; None for what was only an incumbent."""

    @property
    def technique(self) -> Hashable:
        """What makes it structurally different from another move."""
        return technique_of(self.recipe)


def list_moves(history: Iterable[TrialSummary]) -> tuple[Move, ...]:
    """Return the moves of a history, in the order of their last trial."""
    groups: dict[Hashable, list[TrialSummary]] = defaultdict(list)
    for trial in history:
        key = (trial.recipe.base_model, trial.recipe.dataset_jsonl, recipe_key(trial.recipe))
        # Taken out and put back: a recipe's place is that of its last trial.
        groups[key] = [*groups.pop(key, []), trial]
    return tuple(_move(trials) for trials in groups.values())


def technique_of(recipe: TrainRecipe) -> Hashable:
    """Return what a recipe trains and on what; recipes that differ in numbers alone share it.

    Every recipe here learns from demonstrations, so techniques differ in base, data, adapted
    layers and projections and in the kind of the update.
    """
    return (
        recipe.base_model,
        recipe.dataset_jsonl,
        frozenset(recipe.lora_target_modules),
        None if recipe.lora_layers is None else frozenset(recipe.lora_layers),
        recipe.use_dora,
        recipe.system_prompt_file,
    )


def _move(trials: list[TrialSummary]) -> Move:
    scores = [trial.score for trial in trials if trial.score is not None and math.isfinite(trial.score)]
    gains = [trial.gain for trial in trials if trial.gain is not None and math.isfinite(trial.gain)]
    return Move(
        trial_ids=tuple(trial.trial_id for trial in trials),
        recipe=trials[-1].recipe,
        score=fmean(scores) if scores else None,
        gain=gains[-1] if gains else None,
    )
