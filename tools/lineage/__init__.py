"""The log of all trials: a TSV row each, and the same rows as a prompt for the next planner."""

from __future__ import annotations

from tools.lineage.edit import RecipeEdit
from tools.lineage.rendering import LineageSnapshot
from tools.lineage.store import LineageStore
from tools.lineage.trial import FailureLabel, Trial

__all__ = ["FailureLabel", "LineageSnapshot", "LineageStore", "RecipeEdit", "Trial"]
