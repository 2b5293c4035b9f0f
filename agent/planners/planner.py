"""The planner: what proposes the candidates of an iteration."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from agent.plan import Plan, PlanContext

__all__ = ["PlanContext", "Planner"]


@runtime_checkable
class Planner(Protocol):
    """Anything that turns a context into a plan.

    A planner reads its context alone and keeps nothing between calls, so that a flywheel that
    died resumes with the same planner built anew. Its proposals apply to `context.incumbent`,
    stay inside `context.patch_space`, differ from each other and from what was tried, and are
    at most `context.n_candidates`.
    """

    @property
    def name(self) -> str:
        """What decisions and commits call it."""
        ...

    def plan(self, context: PlanContext) -> Plan:
        """Return the plan of one iteration.

        Raises:
            PlannerError: it has nothing to propose.
        """
        ...
