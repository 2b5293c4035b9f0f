"""Planners by the name that task.yaml gives them."""

from __future__ import annotations

from pathlib import Path

from agent.planners.planner import Planner
from tools.errors import PlannerError

__all__ = ["open_planner"]


def open_planner(name: str, *, seed: int = 0, plan_file: Path | None = None) -> Planner:
    """Return the planner that a task names.

    Args:
        seed: Of the planners that draw.
        plan_file: The YAML list that the planner `fixed` reads.
    Raises:
        PlannerError: the name is unknown, or `fixed` has no file.
    """
    if name == "optuna":
        from agent.planners.optuna_planner import OptunaPlanner

        return OptunaPlanner(seed=seed)
    if name == "fixed":
        from agent.planners.fixed import FixedPlanner

        if plan_file is None:
            raise PlannerError("planner 'fixed' needs a file of patches; give one with --plan")
        return FixedPlanner(plan_file)
    raise PlannerError(f"planner is {name!r}; allowed: 'optuna', 'fixed'")
