"""Planners by the name that task.yaml gives them."""

from __future__ import annotations

from pathlib import Path

from agent.planners.planner import Planner
from agent.planners.queue_first import QueueFirstPlanner
from tools.errors import PlannerError
from tools.task import BakeoffSettings

__all__ = ["open_planner"]


def open_planner(
    name: str,
    *,
    seed: int = 0,
    plan_file: Path | None = None,
    settings: BakeoffSettings | None = None,
) -> Planner:
    """Return the planner that a task names; those that read no prompt try the queue's ideas first.

    Args:
        seed: Of the planners that draw.
        plan_file: The YAML list that the planner `fixed` reads.
        settings: Of the planner `claude`, which optuna stands in for while its server is out.
    Raises:
        PlannerError: the name is unknown, `fixed` has no file, or `claude` no model or no key.
        MissingExtraError: `claude` is asked for and its package is not installed.
    """
    if name == "optuna":
        from agent.planners.optuna_planner import OptunaPlanner

        return QueueFirstPlanner(OptunaPlanner(seed=seed))
    if name == "fixed":
        from agent.planners.fixed import FixedPlanner

        if plan_file is None:
            raise PlannerError("planner 'fixed' needs a file of patches; give one with --plan")
        return QueueFirstPlanner(FixedPlanner(plan_file))
    if name == "claude":
        return _open_claude(settings or BakeoffSettings(), seed)
    raise PlannerError(f"planner is {name!r}; allowed: 'optuna', 'claude', 'fixed'")


def _open_claude(settings: BakeoffSettings, seed: int) -> Planner:
    from agent.planners.claude_planner import ClaudePlanner
    from agent.planners.fallback import FallbackPlanner
    from agent.planners.messages_client import MessagesServer

    if settings.planner_model is None:
        raise PlannerError("planner 'claude' needs bakeoff.planner_model in task.yaml: the model to ask")
    claude = ClaudePlanner(
        settings.planner_model,
        server=MessagesServer(base_url=settings.planner_base_url),
        turns=settings.planner_turns,
        prices=settings.planner_prices,
    )
    return FallbackPlanner(claude, open_planner("optuna", seed=seed))
