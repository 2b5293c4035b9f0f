"""Planners behind one protocol; each loads its library only when it is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.planners.claude_planner import ClaudePlanner
    from agent.planners.fallback import FallbackPlanner
    from agent.planners.fixed import FixedPlanner
    from agent.planners.optuna_planner import OptunaPlanner
    from agent.planners.planner import Planner

__all__ = ["ClaudePlanner", "FallbackPlanner", "FixedPlanner", "OptunaPlanner", "Planner"]

_HOMES = {
    "ClaudePlanner": "agent.planners.claude_planner",
    "FallbackPlanner": "agent.planners.fallback",
    "FixedPlanner": "agent.planners.fixed",
    "OptunaPlanner": "agent.planners.optuna_planner",
    "Planner": "agent.planners.planner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
