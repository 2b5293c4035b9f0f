"""The candidates of a plan: recipes that may be proposed, each at most once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from agent.plan import PlanContext, TrialSummary
from agent.training_rows import is_own_file
from tools.errors import PatchError, PlannerError
from tools.patch import RecipePatch, apply_patch, patch_from_mapping
from tools.patch_space import PROJECTIONS
from tools.recipe import TrainRecipe

__all__ = ["Candidate", "CandidateFilter", "is_comparable", "is_tried", "recipe_key", "relative_cost"]

# A trial that the bookkeeping or a cap of the budget ended says nothing about its recipe.
_NEVER_JUDGED: Final = frozenset({"harness_abort", "train_budget_overrun", "eval_budget_overrun"})
# What differs between trials of one recipe, or changes how it runs and not what it learns.
_NOT_IN_KEY: Final = frozenset(
    {
        *("seed", "notes", "output_dir", "base_model", "dataset_jsonl", "system_prompt_file"),
        *("backend", "container", "extra_env", "save_interval", "most_recent_k", "smoke_steps"),
        *("eval_interval", "early_stop_patience", "micro_batch_size", "packing"),
        *("gradient_checkpointing", "quantization"),
    }
)
# The width at which a rank is weighed where the model's own is not known.
_TYPICAL_WIDTH: Final = 1024


@dataclass(frozen=True)
class Candidate:
    """A patch that applies, and the recipe that it gives."""

    patch: RecipePatch
    recipe: TrainRecipe


def recipe_key(recipe: TrainRecipe) -> Hashable:
    """Return what two recipes share exactly when training them would learn the same, seeds aside."""
    parts: list[Hashable] = []
    for item in fields(TrainRecipe):
        if item.name in _NOT_IN_KEY or (item.name == "max_steps" and recipe.epochs is not None):
            continue
        value = getattr(recipe, item.name)
        # 2 and 2.0 are one key already; lists of names are sets.
        parts.append((item.name, frozenset(value) if isinstance(value, tuple) else value))
    # Rows that were made for a request teach something else; their file's name is their digest.
    own = recipe.dataset_jsonl if is_own_file(recipe.dataset_jsonl) else None
    return (*parts, own)


def is_tried(trial: TrialSummary) -> bool:
    """Return whether the trial says something about its recipe."""
    return trial.score is not None or trial.status not in _NEVER_JUDGED


def is_comparable(trial: TrialSummary, incumbent: TrainRecipe) -> bool:
    """Return whether a trial's score can guide a search that starts at incumbent."""
    # One side may hold the path as written and the other resolved, so only the names compare.
    names = [recipe.base_model.rstrip("/").rsplit("/", 1)[-1] for recipe in (trial.recipe, incumbent)]
    return names[0] == names[1]


def relative_cost(recipe: TrainRecipe, base: TrainRecipe, n_rows: int) -> float:
    """Return about how many times as long recipe trains as base.

    Rows seen, times the work on a row. A frozen weight costs two units a token forward and two
    backward; an adapter's weight, which also needs its own gradient, six.
    """
    return _row_passes(recipe, n_rows) * _row_work(recipe) / (_row_passes(base, n_rows) * _row_work(base))


def _differs(value: Any, current: Any) -> bool:
    if isinstance(value, tuple) and isinstance(current, tuple):
        return set(value) != set(current)
    return bool(value != current)


def _row_passes(recipe: TrainRecipe, n_rows: int) -> float:
    if recipe.epochs is not None and n_rows <= 0:
        return recipe.epochs
    return float(recipe.total_steps(n_rows) * recipe.global_batch_size)


def _row_work(recipe: TrainRecipe) -> float:
    share = len(set(recipe.lora_target_modules) & set(PROJECTIONS)) / len(PROJECTIONS)
    return 1 + 1.5 * share * 2 * recipe.lora_rank / _TYPICAL_WIDTH


@dataclass
class CandidateFilter:
    """Turns field values into candidates, refusing what may not be proposed or was before."""

    context: PlanContext
    max_cost_ratio: float
    _seen: set[Hashable] = field(default_factory=set)

    def __post_init__(self) -> None:
        context = self.context
        self._seen.add(recipe_key(context.incumbent))
        self._seen.update(
            recipe_key(trial.recipe)
            for trial in context.history
            if is_tried(trial) and is_comparable(trial, context.incumbent)
        )

    def n_wanted(self) -> int:
        """Return how many candidates the plan may hold.

        Raises:
            PlannerError: the budget has no trial left.
        """
        left = self.context.budget_left.trials
        wanted = self.context.n_candidates if left is None else min(self.context.n_candidates, left)
        if wanted < 1:
            raise PlannerError(f"{wanted} candidates wanted, {left} trials left; nothing can be planned")
        return wanted

    def is_too_slow(self, values: Mapping[str, Any]) -> bool:
        """Return whether the incumbent with these values would cost more than allowed."""
        changed = self.context.incumbent.replace(**values)
        cost = relative_cost(changed, self.context.incumbent, self.context.n_train_rows)
        return cost > self.max_cost_ratio

    def build(self, values: Mapping[str, Any]) -> Candidate | None:
        """Return the candidate that values give, or None where they change nothing.

        Raises:
            PatchError: the values leave the patch space or make an impossible recipe.
        """
        incumbent, space = self.context.incumbent, self.context.patch_space
        wanted = {name: value for name, value in values.items() if _differs(value, getattr(incumbent, name))}
        if not wanted:
            return None
        patch = patch_from_mapping(wanted, space=space)
        return Candidate(patch, apply_patch(incumbent, patch, space=space))

    def is_known(self, candidate: Candidate) -> bool:
        """Return whether the recipe was tried or is in the plan already."""
        return recipe_key(candidate.recipe) in self._seen

    def add(self, candidate: Candidate) -> bool:
        """Remember candidate; return whether it is new."""
        key = recipe_key(candidate.recipe)
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new

    def take(self, values: Mapping[str, Any]) -> Candidate | None:
        """Return the new candidate that values give, or None where none may be proposed."""
        try:
            candidate = self.build(values)
        except PatchError:
            return None
        if candidate is None or self.is_too_slow(candidate.patch.values()):
            return None
        return candidate if self.add(candidate) else None
