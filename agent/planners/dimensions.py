"""The dimensions of a search: lists of settings, each between a recipe and a coordinate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agent.plan import PlanContext
from tools.patch_space import PROJECTIONS
from tools.recipe import TrainRecipe

__all__ = ["Dimension", "alpha_ratio", "compose_values", "search_dimensions"]

# Ten settings a decade are closer together than training noise can tell apart.
_STEPS_A_DECADE: Final = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
_LEARNING_RATES: Final = tuple(
    float(f"{mantissa}e{exponent}") for exponent in (-5, -4, -3) for mantissa in _STEPS_A_DECADE
)
_TARGET_SETS: Final = (PROJECTIONS, PROJECTIONS[:4], PROJECTIONS[4:], ("q_proj", "v_proj"))
_STEP_FACTORS: Final = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)

# Name of the coordinate, the recipe field behind it, and the settings worth trying.
_FIRST: Final[tuple[tuple[str, tuple[Any, ...]], ...]] = (
    ("learning_rate", tuple(rate for rate in _LEARNING_RATES if 2e-5 <= rate <= 5e-3)),
    ("lora_rank", (4, 8, 16, 32, 64, 128)),
    ("lora_target_modules", _TARGET_SETS),
    ("epochs", (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)),
    ("max_steps", ()),
    ("global_batch_size", (4, 8, 16, 32, 64)),
)
_LATER: Final[tuple[tuple[str, tuple[Any, ...]], ...]] = (
    ("lora_alpha", (0.5, 1.0, 2.0, 4.0)),
    ("lora_dropout", (0.0, 0.05, 0.1, 0.2)),
    ("lr_schedule", ("cosine", "linear", "constant")),
    ("lr_warmup_fraction", (0.0, 0.03, 0.06, 0.1, 0.2)),
    ("weight_decay", (0.0, 0.01, 0.1)),
)


@dataclass(frozen=True)
class Dimension:
    """One coordinate: a recipe field (for `lora_alpha`, its ratio to the rank) and its settings."""

    name: str
    settings: tuple[Any, ...]
    ordered: bool

    def index(self, recipe: TrainRecipe) -> int:
        """Return the place of the recipe's setting, or of the nearest one."""
        value = _read(self.name, recipe)
        if self.ordered and value is not None:
            return min(range(len(self.settings)), key=lambda place: _distance(value, self.settings[place]))
        return self.settings.index(value) if value in self.settings else 0


def search_dimensions(context: PlanContext, *, fine: bool) -> tuple[Dimension, ...]:
    """Return the dimensions that a search over the context's patch space has.

    Each holds the incumbent's own setting, so that staying is always possible.

    Args:
        context: Supplies the incumbent, the history and the patch space.
        fine: Take in the fields that matter less, for when the history has taught the others.
    """
    found = []
    for name, settings in _FIRST + (_LATER if fine else ()):
        if _applies(name, context):
            dimension = _dimension(name, settings, context)
            if len(dimension.settings) > 1:
                found.append(dimension)
    return tuple(found)


def compose_values(coordinates: Mapping[str, Any], context: PlanContext) -> dict[str, Any]:
    """Return the field values of a point, with the fields that have to follow along.

    Alpha keeps its ratio to a rank that moves, and the micro batch divides the global one.
    """
    incumbent, space = context.incumbent, context.patch_space
    values = {name: value for name, value in coordinates.items() if name != "lora_alpha"}
    rank = values.get("lora_rank", incumbent.lora_rank)
    if "lora_alpha" in space:
        ratio = coordinates.get("lora_alpha", alpha_ratio(incumbent))
        values["lora_alpha"] = max(1, round(ratio * rank))
    batch = values.get("global_batch_size", incumbent.global_batch_size)
    if batch % incumbent.micro_batch_size and "micro_batch_size" in space:
        values["micro_batch_size"] = math.gcd(batch, incumbent.micro_batch_size)
    return values


def alpha_ratio(recipe: TrainRecipe) -> float:
    """Return alpha over rank."""
    return recipe.lora_alpha / recipe.lora_rank


def _applies(name: str, context: PlanContext) -> bool:
    if name == "epochs":
        return name in context.patch_space and context.incumbent.epochs is not None
    if name == "max_steps":
        return name in context.patch_space and context.incumbent.epochs is None
    return name in context.patch_space


def _dimension(name: str, settings: tuple[Any, ...], context: PlanContext) -> Dimension:
    incumbent = context.incumbent
    if name == "max_steps":
        settings = tuple(max(1, round(factor * incumbent.max_steps)) for factor in _STEP_FACTORS)
    own = _read(name, incumbent)
    allowed = (setting for setting in settings if _is_allowed(name, setting, context))
    if name in ("lora_target_modules", "lr_schedule"):
        seen = (_read(name, trial.recipe) for trial in context.history)
        known = (setting for setting in seen if _is_allowed(name, setting, context))
        return Dimension(name, _unique((own, *allowed, *known)), ordered=False)
    return Dimension(name, tuple(sorted({own, *allowed})), ordered=True)


def _is_allowed(name: str, setting: Any, context: PlanContext) -> bool:
    incumbent, space = context.incumbent, context.patch_space
    if name == "lora_alpha":
        return True  # a ratio; the alpha that it gives is checked with the whole patch
    if name == "global_batch_size":
        # More rows a step than there are rows is the same step again.
        if 0 < context.n_train_rows < setting:
            return False
        if setting % incumbent.micro_batch_size and "micro_batch_size" not in space:
            return False
    return space.ranges[name].problem(setting) is None


def _read(name: str, recipe: TrainRecipe) -> Any:
    if name == "lora_alpha":
        return alpha_ratio(recipe)
    value = getattr(recipe, name)
    if name == "lora_target_modules":
        known = tuple(entry for entry in PROJECTIONS if entry in value)
        return known if len(known) == len(value) else value
    return value


def _distance(left: float, right: float) -> float:
    # Settings of one dimension span decades, so ratios count; zero has no logarithm.
    tiny = 1e-9
    return abs(math.log(max(left, tiny)) - math.log(max(right, tiny)))


def _unique(settings: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(settings))
