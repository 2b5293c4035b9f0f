"""What a flywheel may still spend."""

from __future__ import annotations

from dataclasses import dataclass

from agent.plan import BudgetLeft
from tools.task import BudgetCaps


@dataclass(frozen=True)
class Budget:
    """Caps, and what was spent against them. Times in seconds of wall clock."""

    caps: BudgetCaps
    spent_wall_s: float = 0.0
    spent_trials: int = 0

    def refusal(self, *, wall_s: float, trials: int) -> str | None:
        """Return why a step of this worst case may not start, or None when it may."""
        if self.caps.trials is not None and self.spent_trials + trials > self.caps.trials:
            return (
                f"{trials} trial(s) more would pass the cap of {self.caps.trials} ({self.spent_trials} spent)"
            )
        if self.caps.wall_s is not None and self.spent_wall_s + wall_s > self.caps.wall_s:
            return (
                f"{wall_s:.0f} s more could pass the wall-clock cap of {self.caps.wall_s:.0f} s "
                f"({self.spent_wall_s:.0f} s spent)"
            )
        return None

    def spend(self, *, wall_s: float = 0.0, trials: int = 0) -> Budget:
        """Return the budget after spending."""
        return Budget(self.caps, self.spent_wall_s + wall_s, self.spent_trials + trials)

    def left(self) -> BudgetLeft:
        """Return what is left; None where there is no cap."""
        wall, trials = self.caps.wall_s, self.caps.trials
        return BudgetLeft(
            trials=None if trials is None else max(0, trials - self.spent_trials),
            wall_s=None if wall is None else max(0.0, wall - self.spent_wall_s),
        )
