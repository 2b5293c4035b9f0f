"""Diagnostics: what another setting will not mend, and numbers that rise without the model improving."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.diagnostics.adapter_weights import AdapterWeights, read_adapter_weights
    from agent.diagnostics.false_progress import (
        find_conditioned_on_judged,
        find_eval_in_synthetic,
        find_objective_mismatch,
        find_trained_on_held_out,
        find_untrained_checkpoint,
    )
    from agent.diagnostics.finding import Finding, describe_findings
    from agent.diagnostics.moves import Move, list_moves, technique_of
    from agent.diagnostics.panel import diagnose_data, diagnose_history
    from agent.diagnostics.plateaus import (
        find_base_below_random,
        find_exhausted_method,
        find_same_score,
        find_stuck_at_zero,
    )
    from agent.diagnostics.technique import (
        RewardShape,
        Technique,
        TechniqueChoice,
        choose_technique,
        reward_shape,
    )
    from agent.diagnostics.timing import find_implausibly_fast

__all__ = [
    "AdapterWeights",
    "Finding",
    "Move",
    "RewardShape",
    "Technique",
    "TechniqueChoice",
    "choose_technique",
    "describe_findings",
    "diagnose_data",
    "diagnose_history",
    "find_base_below_random",
    "find_conditioned_on_judged",
    "find_eval_in_synthetic",
    "find_exhausted_method",
    "find_implausibly_fast",
    "find_objective_mismatch",
    "find_same_score",
    "find_stuck_at_zero",
    "find_trained_on_held_out",
    "find_untrained_checkpoint",
    "list_moves",
    "read_adapter_weights",
    "reward_shape",
    "technique_of",
]

_MODULES = {
    "adapter_weights": ("AdapterWeights", "read_adapter_weights"),
    "false_progress": (
        "find_conditioned_on_judged",
        "find_eval_in_synthetic",
        "find_objective_mismatch",
        "find_trained_on_held_out",
        "find_untrained_checkpoint",
    ),
    "finding": ("Finding", "describe_findings"),
    "moves": ("Move", "list_moves", "technique_of"),
    "panel": ("diagnose_data", "diagnose_history"),
    "plateaus": (
        "find_base_below_random",
        "find_exhausted_method",
        "find_same_score",
        "find_stuck_at_zero",
    ),
    "technique": ("RewardShape", "Technique", "TechniqueChoice", "choose_technique", "reward_shape"),
    "timing": ("find_implausibly_fast",),
}
_HOMES = {name: f"agent.diagnostics.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
