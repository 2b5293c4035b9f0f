"""The planner: what proposes the candidates of an iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from agent.plan import Plan, PlanContext
from tools.task import PlannerPrices

__all__ = ["PaidPlanner", "PlanContext", "Planner", "PlannerCosts", "costs_of"]


@dataclass(frozen=True)
class PlannerCosts:
    """What asking a language model may cost."""

    prices: PlannerPrices | None
    """None where nobody says."""
    time_limit_s: float
    """Most seconds that a plan takes."""


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


@runtime_checkable
class PaidPlanner(Protocol):
    """A planner that may ask a language model."""

    @property
    def costs(self) -> PlannerCosts | None:
        """What that costs; None where it asks nobody."""
        ...


def costs_of(planner: Planner) -> PlannerCosts | None:
    """Return what a planner's language model costs, None for one that asks nobody."""
    return planner.costs if isinstance(planner, PaidPlanner) else None
