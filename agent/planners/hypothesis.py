"""The hypothesis: what a patch does, in a sentence."""

from __future__ import annotations

from tools.patch import Change, diff_recipes, format_values
from tools.recipe import TrainRecipe

__all__ = ["describe_changes"]

_VERBS = {True: "raise", False: "lower"}


def describe_changes(before: TrainRecipe, after: TrainRecipe) -> str:
    """Return what turning one recipe into the other does, as a clause without a subject.

    Example: `raise learning_rate from 0.0001 to 0.001 (10x) and add adapters on gate_proj`.
    """
    clauses = [_describe(change) for change in diff_recipes(before, after)]
    if len(clauses) < 2:
        return "".join(clauses) or "change nothing"
    return ", ".join(clauses[:-1]) + " and " + clauses[-1]


def _describe(change: Change) -> str:
    before, after = change.before, change.after
    if isinstance(before, tuple) and isinstance(after, tuple):
        come = [str(entry) for entry in after if entry not in before]
        gone = [str(entry) for entry in before if entry not in after]
        noun = "adapters on " + ("layer " if change.field == "lora_layers" else "")
        parts = [
            f"{verb} {noun}{', '.join(names)}" for verb, names in (("add", come), ("drop", gone)) if names
        ]
        return " and ".join(parts)
    was, is_now = (format_values({"": value}).strip() for value in (before, after))
    if _is_number(before) and _is_number(after):
        times = f" ({after / before:.3g}x)" if before > 0 and after > 0 else ""
        return f"{_VERBS[after > before]} {change.field} from {was} to {is_now}{times}"
    return f"switch {change.field} from {was} to {is_now}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
