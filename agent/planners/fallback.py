"""The fallback planner: one that is asked first, and one that steps in when its server is out."""

from __future__ import annotations

from agent.plan import Plan, PlanContext
from agent.planners.planner import Planner, PlannerCosts, costs_of
from agent.planners.quoting import cut
from tools.errors import PlannerOutageError

__all__ = ["FallbackPlanner"]


class FallbackPlanner:
    """Asks primary, and secondary where primary is out; the plan says which of the two made it.

    Primary is asked anew each time: an outage of one iteration does not outlast it.
    """

    def __init__(self, primary: Planner, secondary: Planner) -> None:
        """Make a planner of two."""
        self.primary = primary
        self.secondary = secondary

    @property
    def name(self) -> str:
        """Both names; a plan carries the name of the one that made it."""
        return f"{self.primary.name}, else {self.secondary.name}"[:64]

    @property
    def costs(self) -> PlannerCosts | None:
        """What asking primary costs."""
        return costs_of(self.primary)

    def plan(self, context: PlanContext) -> Plan:
        """Return primary's plan, or secondary's with the reason in its notes and name.

        Raises:
            PlannerError: there is nothing to propose.
            BudgetError: a cap was reached; secondary does not step in for that.
        """
        try:
            return self.primary.plan(context)
        except PlannerOutageError as err:
            plan = self.secondary.plan(context)
            said = f"{self.primary.name} could not plan, {self.secondary.name} stepped in: {err}"
            notes = cut("\n".join(note for note in (said, plan.notes) if note), 8000)
            name = f"{plan.planner} (for {self.primary.name})"[:64]
            return plan.model_copy(update={"planner": name, "notes": notes})
