"""Estimates: what a step may cost at worst, by what the incumbent's trials took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent.budget.amounts import Amounts
from agent.incumbent import Incumbent
from agent.planners.candidates import relative_cost
from agent.records import TrialRecord
from tools.task import Task

__all__ = ["Pace"]

_MARGIN: Final = 2.0
"""A worst case is so many times what the incumbent's measured times say."""


@dataclass(frozen=True)
class Pace:
    """How long the incumbent's trials took here, and on how many GPUs."""

    incumbent: Incumbent
    n_rows: int
    gpus: int

    @property
    def train_s(self) -> float:
        return max((trial.train_s for trial in self.incumbent.trials), default=0.0)

    @property
    def eval_s(self) -> float:
        return max((trial.eval_s for trial in self.incumbent.trials), default=0.0)

    def smoking(self, task: Task, n_candidates: int) -> Amounts:
        """Return the worst case of the smoke gate, each candidate with plumbing of its own."""
        steps = max((trial.steps for trial in self.incumbent.trials), default=0)
        rows = self.incumbent.train_recipe.global_batch_size
        a_row_s = self.train_s / (steps * rows) if steps else 0.0
        wall_s = a_row_s * task.smoke.steps * task.smoke.rows + self.eval_s
        return self._amounts(n_candidates * wall_s)

    def training(self, trials: Sequence[TrialRecord]) -> Amounts:
        """Return the worst case of training trials, one after the other."""
        base = self.incumbent.train_recipe
        costs = sum(relative_cost(trial.train_recipe, base, self.n_rows) for trial in trials)
        return self._amounts(self.train_s * costs, tuple(trial.trial_id for trial in trials))

    def scoring(self, trials: Sequence[TrialRecord]) -> Amounts:
        """Return the worst case of scoring trials on dev and selection."""
        return self._amounts(self.eval_s * len(trials))

    def _amounts(self, measured_s: float, trials: tuple[str, ...] = ()) -> Amounts:
        wall_s = round(_MARGIN * measured_s, 3)
        return Amounts(wall_s=wall_s, gpu_s=wall_s * self.gpus, trials=trials)
