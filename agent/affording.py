"""Affording: which trials of a step the budget still covers, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from agent.budget.amounts import Amounts
from agent.budget.estimates import Pace
from agent.budget.ledger import Ledger
from agent.plan import PlanContext
from agent.planners.planner import Planner, costs_of
from agent.records import NOT_TRAINED, TrialRecord
from tools.errors import BudgetError

__all__ = [
    "NO_TIME",
    "UNKNOWN_TIME",
    "Affordable",
    "by_seed",
    "choose_affordable",
    "training_worst",
    "until_cap",
    "worst_of_planning",
]

UNKNOWN_TIME: Final = Amounts(wall_s=None, gpu_s=None)
"""The worst case of work that was never measured here: all that is left, which its worker is held to."""
NO_TIME: Final = Amounts()


@dataclass(frozen=True)
class Affordable:
    """The trials that a step may run."""

    trials: tuple[TrialRecord, ...]
    left_out: tuple[TrialRecord, ...]
    """Those that it may not, each with its reason."""
    refusal: str | None
    begun: bool
    """Whether one of those left out had begun before the run was cut off."""


def choose_affordable(
    ledger: Ledger, units: Sequence[Sequence[TrialRecord]], pace: Pace | None
) -> Affordable:
    """Return as many units of trials, in their order, as can be trained and also scored."""
    chosen: list[TrialRecord] = []
    refusal, taken = None, 0
    for unit in units:
        asked = [*chosen, *unit]
        worst = training_worst(asked, pace)
        refusal = ledger.refusal(worst if pace is None else worst + pace.scoring(asked))
        if refusal is not None:
            break
        chosen, taken = asked, taken + 1
    begun_before = set(ledger.account.spent.trials)
    rest = [trial for unit in units[taken:] for trial in unit]
    return Affordable(
        trials=tuple(chosen),
        left_out=tuple(_left_out(trial, str(refusal), trial.trial_id in begun_before) for trial in rest),
        refusal=refusal,
        begun=any(trial.trial_id in begun_before for trial in rest),
    )


def by_seed(trials: Sequence[TrialRecord]) -> list[list[TrialRecord]]:
    """Return the trials in groups of one seed, in the order in which the seeds came."""
    groups: dict[int, list[TrialRecord]] = {}
    for trial in trials:
        groups.setdefault(trial.seed, []).append(trial)
    return list(groups.values())


def training_worst(trials: Sequence[TrialRecord], pace: Pace | None) -> Amounts:
    """Return what training may cost at worst."""
    if pace is None:
        return UNKNOWN_TIME.model_copy(update={"trials": tuple(trial.trial_id for trial in trials)})
    return pace.training(trials)


def until_cap(
    trials: Sequence[TrialRecord],
    overrun: Literal["train_overrun", "eval_overrun"],
    run: Callable[[], Sequence[TrialRecord]],
) -> Sequence[TrialRecord]:
    """Return what run makes of the trials; where a cap ends it, they say so."""
    try:
        return run()
    except BudgetError as err:
        return [
            trial
            if trial.status in ("failed", "halted") and overrun == "eval_overrun"
            else trial.model_copy(update={"status": overrun, "error": str(err)})
            for trial in trials
        ]


def worst_of_planning(planner: Planner, context: PlanContext) -> Amounts:
    """Return the time that a plan may take at worst; its requests are debited one by one."""
    costs = costs_of(planner)
    if costs is None:
        return NO_TIME
    left_s = context.budget_left.wall_s
    return Amounts(wall_s=costs.time_limit_s if left_s is None else min(left_s, costs.time_limit_s))


def _left_out(trial: TrialRecord, refusal: str, begun: bool) -> TrialRecord:
    if begun:
        told = f"cut off while it trained, and the budget does not cover going on: {refusal}"
        return trial.model_copy(update={"status": "train_overrun", "error": told})
    return trial.model_copy(update={"status": "not_run", "error": f"{NOT_TRAINED}{refusal}"})
