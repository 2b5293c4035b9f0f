"""A budget in memory, for a caller that keeps its own books of what was spent before."""

from __future__ import annotations

from dataclasses import dataclass

from agent.budget.amounts import Amounts
from agent.budget.limits import find_refusal
from tools.task import BudgetCaps

__all__ = ["Budget"]


@dataclass(frozen=True)
class Budget:
    """Caps on wall clock and trials, and what was spent against them."""

    caps: BudgetCaps
    spent_wall_s: float = 0.0
    spent_trials: int = 0

    def refusal(self, *, wall_s: float, trials: int) -> str | None:
        """Return why a step of this worst case may not start, or None when it may."""
        worst = Amounts(wall_s=wall_s, trials=_names("asked", trials))
        return find_refusal(self.caps, self._spent, worst)

    def spend(self, *, wall_s: float = 0.0, trials: int = 0) -> Budget:
        """Return the budget after spending."""
        return Budget(self.caps, self.spent_wall_s + wall_s, self.spent_trials + trials)

    @property
    def _spent(self) -> Amounts:
        return Amounts(wall_s=self.spent_wall_s, trials=_names("spent", self.spent_trials))


def _names(what: str, count: int) -> tuple[str, ...]:
    return tuple(f"{what}-{number}" for number in range(count))
