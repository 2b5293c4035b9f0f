"""The plan: which patches an iteration tries, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.planners.usage import PlannerUsage
from tools.errors import PlannerError
from tools.patch import RecipePatch
from tools.patch_space import DEFAULT_SPACE, PatchSpace
from tools.recipe import TrainRecipe

if TYPE_CHECKING:
    from agent.budget.amounts import RequestMeter
    from agent.ideas.queue import QueueItem
    from agent.planners.evidence import PlannerEvidence

__all__ = ["BudgetLeft", "DataRequest", "Plan", "PlanContext", "Proposal", "TrialSummary"]

Sentence = Annotated[str, Field(min_length=1, max_length=2000)]
Gain = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


class Proposal(BaseModel):
    """One candidate: a patch of the incumbent and what it is expected to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: RecipePatch
    hypothesis: Sentence
    expected_gain: Gain | None = None
    """Expected change of the mean selection score; None where the planner does not say."""
    idea: Annotated[str, Field(pattern=r"^q[0-9]{4,}$")] | None = None
    """The idea of the queue that it comes from."""
    author: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Who had that idea; None is the planner itself."""


class DataRequest(BaseModel):
    """Training rows that a planner would like to have. It becomes an idea of the queue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    focus: Sentence
    rows: Annotated[int, Field(ge=1, le=5000)] = 50


class Plan(BaseModel):
    """What a planner returns for one iteration. Its JSON is what the journal keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    planner: Annotated[str, Field(min_length=1, max_length=64)]
    hypothesis: Sentence
    proposals: Annotated[tuple[Proposal, ...], Field(min_length=1, max_length=64)]
    expected_gain: Gain | None = None
    notes: Annotated[str, Field(max_length=8000)] = ""
    data_request: DataRequest | None = None
    background_additions: Annotated[str, Field(max_length=8000)] = ""
    """What the planner would add to BACKGROUND.md; a person does."""
    usage: PlannerUsage | None = None
    """What asking for it cost; None for planners that ask nobody."""

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values that `from_mapping` reads back to an equal plan."""
        return self.model_dump(mode="json")

    @classmethod
    def from_mapping(cls, data: Any) -> Plan:
        """Return the plan that plain values (a journal's event, a planner's reply) describe.

        Raises:
            PlannerError: names every part that is wrong.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as err:
            lines = [
                f"{'.'.join(str(part) for part in error['loc']) or 'plan'}: "
                + error["msg"].removeprefix("Value error, ")
                for error in err.errors()
            ]
            raise PlannerError("plan refused: " + "; ".join(lines)) from err


@dataclass(frozen=True)
class OnTheWay:
    """The last dev score of a trial that left before its end."""

    step: int
    score: float


@dataclass(frozen=True)
class TrialSummary:
    """One trial of the lineage, as a planner sees it."""

    trial_id: str
    recipe: TrainRecipe
    score: float | None
    """Mean score on the selection split; None when the trial has none."""
    status: str
    """A lineage status: keep, discard, baseline, crash, harness_abort, ..."""
    train_s: float | None = None
    gain: float | None = None
    """Paired gain over the incumbent of its time; None where none was measured."""
    expected_gain: float | None = None
    planner: str = ""
    """Who proposed it; `baseline` for an incumbent."""
    halted: OnTheWay | None = None
    """Where a search halted it; None where it was not, or where that is not known."""


@dataclass(frozen=True)
class BudgetLeft:
    """What the run may still spend; None is no cap."""

    trials: int | None = None
    wall_s: float | None = None
    gpu_s: float | None = None
    dollars: float | None = None
    tokens: int | None = None
    turns: int | None = None
    """Requests to a language model."""


@dataclass(frozen=True)
class PlanContext:
    """All that a planner may look at."""

    incumbent: TrainRecipe
    incumbent_score: float | None
    n_candidates: int
    history: tuple[TrialSummary, ...] = ()
    """Every trial of this task, oldest first, those of earlier flywheels included."""
    iteration: int = 1
    budget_left: BudgetLeft = BudgetLeft()
    patch_space: PatchSpace = DEFAULT_SPACE
    n_train_rows: int = 0
    """Training rows; 0 is unknown."""
    background: Mapping[str, str] = field(default_factory=dict)
    """Named texts for planners that read: mission, decisions, rendered lineage, dev failures."""
    evidence: PlannerEvidence | None = None
    """What a planner that reads may page through; None where there is nothing."""
    ideas: tuple[QueueItem, ...] = ()
    """Ideas that wait in the queue, oldest first."""
    meter: RequestMeter | None = None
    """Counts a planner's requests to a language model against the budget; None counts nothing."""
