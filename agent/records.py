"""Records of an iteration: what the journal stores and what reports and commits are made of."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from agent.budget.amounts import Amounts
from agent.plan import BudgetLeft
from agent.planners.usage import PlannerUsage
from tools.recipe import TrainRecipe

NOT_TRAINED: Final = "not trained: "
"""What begins the reason of a candidate that the budget did not cover."""


class Record(BaseModel):
    """A frozen record that round-trips through JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CandidateRecord(Record):
    """One recipe of a bakeoff, as proposed and as validated."""

    candidate_id: str
    patch: dict[str, Any]
    recipe: dict[str, Any]
    """The candidate's recipe with its paths relative to the workspace, its seed the incumbent's."""
    changes: tuple[str, ...]
    """The readable difference from the incumbent, a field an entry."""
    hypothesis: str
    expected_gain: float | None = None
    rejected: str | None = None
    """Why it was never trained; None when it may be."""
    idea: str | None = None
    """The idea of the queue that it comes from."""
    author: str | None = None
    """Who had that idea; None is the iteration's planner."""

    @property
    def train_recipe(self) -> TrainRecipe:
        return TrainRecipe.from_dict(self.recipe)

    @property
    def is_left_out(self) -> bool:
        """Whether nothing but the budget kept it from being trained."""
        return self.rejected is not None and self.rejected.startswith(NOT_TRAINED)


class TrialRecord(Record):
    """One recipe and one seed, trained and scored."""

    trial_id: str
    candidate_id: str
    parent_id: str
    recipe: dict[str, Any]
    seed: int
    status: Literal["done", "stopped_early", "halted", "failed", "not_run", "train_overrun", "eval_overrun"]
    """`halted` left the search behind better ones, as error says; `not_run` never began, for want of
    budget; an overrun was ended, or not scored, by a cap."""
    error: str | None = None
    adapter_dir: str | None = None
    run_dir: str
    steps: int = 0
    total_steps: int = 0
    """Steps of the whole recipe; 0 where an older record does not say."""
    best_iter: int | None = None
    tokens: int = 0
    train_s: float = 0.0
    eval_s: float = 0.0
    dev: float | None = None
    selection: float | None = None
    scores_dir: str | None = None
    """Folder of this trial's score rows, a file a split."""

    @property
    def train_recipe(self) -> TrainRecipe:
        return TrainRecipe.from_dict(self.recipe)

    @property
    def scored(self) -> bool:
        return self.selection is not None and self.scores_dir is not None


class GuardRecord(Record):
    """A guard metric beside the score: whether it held."""

    name: str
    passed: bool
    detail: str
    measured: bool = True
    """False where it could not be looked at: nothing is kept on an unknown, or discarded."""


class SecondaryRecord(Record):
    """A metric beside the score that no verdict rests on: the incumbent's mean and the candidate's."""

    name: Literal["answer_tokens", "scoring_s", "training_s"]
    base: float
    candidate: float
    low: float | None = None
    """Of the interval of candidate less base; None where there is one number a trial."""
    high: float | None = None
    level: float | None = None


class RulingRecord(Record):
    """The verdict on one candidate, with the numbers it rests on. Scores are in [0, 1]."""

    candidate_id: str
    verdict: Literal["keep", "discard", "inconclusive"]
    reason: str
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    n_items: int = 0
    n_seeds: int = 0
    base_mean: float | None = None
    candidate_mean: float | None = None
    p_value: float | None = None
    guards: tuple[GuardRecord, ...] = ()
    secondary: tuple[SecondaryRecord, ...] = ()


class BudgetRecord(Record):
    """What an iteration spent, and what it left of the run's budget."""

    spent: Amounts
    left: BudgetLeft


class IterationRecord(Record):
    """A whole iteration."""

    iteration_id: str
    started_at: str
    finished_at: str
    wall_s: float
    planner: str
    hypothesis: str
    candidates: tuple[CandidateRecord, ...]
    trials: tuple[TrialRecord, ...]
    """Every trial that the verdicts rest on, the incumbent's included."""
    rulings: tuple[RulingRecord, ...]
    promoted: str | None
    """The candidate that became the incumbent, or None."""
    decision: str
    """The decision in one sentence."""
    notes: tuple[str, ...] = ()
    planner_usage: PlannerUsage | None = None
    """What asking the planner cost; None for one that asks nobody."""
    budget: BudgetRecord | None = None
    """None for one that was recorded before there were budgets."""
    background_additions: str = ""
    """What the planner would add to BACKGROUND.md."""

    def ruling(self, candidate_id: str) -> RulingRecord | None:
        """Return the last ruling on a candidate."""
        found = [ruling for ruling in self.rulings if ruling.candidate_id == candidate_id]
        return found[-1] if found else None

    @property
    def own_trials(self) -> tuple[TrialRecord, ...]:
        """The trials that this iteration ran; the incumbent's older ones are left out."""
        return tuple(trial for trial in self.trials if trial.trial_id.startswith(f"{self.iteration_id}-"))

    def trials_of(self, candidate_id: str) -> tuple[TrialRecord, ...]:
        """Return a candidate's trials, a seed each."""
        return tuple(trial for trial in self.trials if trial.candidate_id == candidate_id)
