"""One iteration of the flywheel, top to bottom: its ten steps are the journal's events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from agent import publishing, rulings, validation
from agent.affording import (
    NO_TIME,
    UNKNOWN_TIME,
    by_seed,
    choose_affordable,
    training_worst,
    until_cap,
    worst_of_planning,
)
from agent.bench import Bench
from agent.budget.estimates import Pace
from agent.data_work.requested_rows import RequestedRows
from agent.gathering import beside_rows, gather_rows, with_gathering
from agent.ideas.bookkeeping import note_plan, settle_ideas
from agent.ideas.queue import open_queue
from agent.incumbent import INCUMBENT, Incumbent
from agent.plan import Plan
from agent.planners.planner import PlanContext
from agent.records import BudgetRecord, CandidateRecord, IterationRecord, RulingRecord, TrialRecord
from tools.errors import BudgetError

_CANDIDATES = TypeAdapter(tuple[CandidateRecord, ...])
_TRIALS = TypeAdapter(tuple[TrialRecord, ...])
_RULINGS = TypeAdapter(tuple[RulingRecord, ...])


def run_iteration(
    bench: Bench, iteration_id: str, incumbent: Incumbent, context: Callable[[], PlanContext]
) -> tuple[IterationRecord, Incumbent]:
    """Run one iteration and return its record and the incumbent after it.

    Every step's result is in the journal before the next begins, so that after a crash the
    same call finishes what is missing and repeats nothing.

    Raises:
        BudgetError: a cap was reached before a candidate was trained.
    """
    started_at = str(bench.step("begin", iteration_id, bench.clock))
    pace = bench.pace(incumbent)
    rows = gather_rows(bench, iteration_id, incumbent)
    plan = with_gathering(plan_candidates(bench, iteration_id, context, rows), rows)
    candidates = validate_candidates(bench, iteration_id, incumbent, plan, rows)
    candidates = smoke_candidates(bench, iteration_id, candidates, pace=pace)
    trials = first_seed_trials(bench, iteration_id, incumbent, candidates)
    trials = train_trials(bench, iteration_id, trials, pace=pace)
    candidates, trials = leave_out_unaffordable(candidates, trials)
    trials = evaluate_trials(bench, iteration_id, trials, pace=pace)
    guards = probe_trials(bench, iteration_id, incumbent, trials)
    first = compare_trials(bench, iteration_id, incumbent, trials, guards, look=1)
    incumbent, trials, final = settle_verdict(bench, iteration_id, incumbent, trials, guards, first)
    record = decide_iteration(bench, iteration_id, incumbent, plan, candidates, trials, final, started_at)
    incumbent = rulings.promote(record, incumbent)
    commit_iteration(bench, record, incumbent)
    return record, incumbent


def plan_candidates(
    bench: Bench,
    iteration_id: str,
    context: Callable[[], PlanContext],
    rows: RequestedRows | None = None,
) -> Plan:
    """plan: ask the planner for patches and a hypothesis; requested rows take one of the places."""

    def run() -> Any:
        # Made before the debit, so that the planner is shown what there is to plan with.
        asked = beside_rows(context(), rows)
        with bench.spending("plan", iteration_id, worst_of_planning(bench.planner, asked)):
            meter = bench.ledger.requests("plan", iteration_id)
            return bench.planner.plan(replace(asked, meter=meter)).model_dump(mode="json")

    plan = Plan.model_validate(bench.step("plan", iteration_id, run))
    note_plan(open_queue(bench.workspace, clock=bench.clock), iteration_id, plan)
    return plan


def validate_candidates(
    bench: Bench, iteration_id: str, incumbent: Incumbent, plan: Plan, rows: RequestedRows | None = None
) -> tuple[CandidateRecord, ...]:
    """validate: each patch against the allow-list, each recipe against memory and data."""

    def check() -> tuple[CandidateRecord, ...]:
        checked = validation.check_proposals(bench.workspace, bench.task, incumbent, plan)
        if rows is None or rows.dataset is None:
            return checked
        name = f"c{len(checked) + 1}"
        return (*checked, validation.check_requested(bench.workspace, incumbent, rows, name))

    def run() -> Any:
        validation.check_data(bench.workspace, bench.task, incumbent.train_recipe)
        checked = check()
        if any(candidate.rejected for candidate in checked):
            # It may be for want of the very memory in which the worker keeps the base.
            bench.runner.release()
            checked = check()
        for candidate in checked:
            bench.say("validate", iteration_id, validation.describe(candidate))
        return _CANDIDATES.dump_python(checked, mode="json")

    return _CANDIDATES.validate_python(bench.step("validate", iteration_id, run))


def smoke_candidates(
    bench: Bench, iteration_id: str, candidates: Sequence[CandidateRecord], *, pace: Pace | None = None
) -> tuple[CandidateRecord, ...]:
    """smoke: a few rows, a loadable checkpoint, a non-zero eval item; else the recipe is broken."""
    open_ones = sum(candidate.rejected is None for candidate in candidates)
    worst = UNKNOWN_TIME if pace is None else pace.smoking(bench.task, open_ones)

    def run() -> Any:
        with bench.spending("smoke", iteration_id, worst):
            passed = validation.smoke(bench.runner, candidates, label=iteration_id)
        return _CANDIDATES.dump_python(passed, mode="json")

    return _CANDIDATES.validate_python(bench.step("smoke", iteration_id, run))


def first_seed_trials(
    bench: Bench, iteration_id: str, incumbent: Incumbent, candidates: Sequence[CandidateRecord]
) -> tuple[TrialRecord, ...]:
    """Return a trial for every candidate that may be trained, on the task's first seed."""
    return tuple(
        bench.runner.plan_trial(
            candidate, iteration_id=iteration_id, seed=bench.task.seeds[0], parent_id=incumbent.trial_id
        )
        for candidate in candidates
        if candidate.rejected is None
    )


def train_trials(
    bench: Bench,
    iteration_id: str,
    trials: Sequence[TrialRecord],
    *,
    look: int = 1,
    pace: Pace | None = None,
    search: bool = True,
) -> tuple[TrialRecord, ...]:
    """train: the candidates together on one frozen base, as many of them as the budget covers.

    Args:
        search: Let them compete at the first look, where the task says how.
    Raises:
        BudgetError: it covers none, and none was begun.
    """
    name = _look("train", look)

    def run() -> Any:
        # A further seed is bought for the leader and the incumbent alike, or not at all.
        units = [[trial] for trial in trials] if look == 1 else by_seed(trials)
        chosen = choose_affordable(bench.ledger, units, pace)
        trained: Sequence[TrialRecord] = ()
        if chosen.trials:
            with bench.spending(name, iteration_id, training_worst(chosen.trials, pace)):
                trained = until_cap(
                    chosen.trials,
                    "train_overrun",
                    lambda: bench.runner.train(
                        chosen.trials, label=f"{iteration_id}-look{look}", search=search and look == 1
                    ),
                )
            for trial in trained:
                if trial.status == "halted":
                    bench.say("train", iteration_id, rulings.describe_trial(trial))
        elif trials and look == 1 and not chosen.begun:
            raise BudgetError(f"no candidate of {iteration_id} was trained: {chosen.refusal}")
        return _TRIALS.dump_python((*trained, *chosen.left_out), mode="json")

    return _TRIALS.validate_python(bench.step(name, iteration_id, run))


def leave_out_unaffordable(
    candidates: Sequence[CandidateRecord], trials: Sequence[TrialRecord]
) -> tuple[tuple[CandidateRecord, ...], tuple[TrialRecord, ...]]:
    """Return the candidates, those that the budget did not cover refused, and the trials that ran."""
    why = {trial.candidate_id: trial.error for trial in trials if trial.status == "not_run"}
    told = tuple(
        candidate.model_copy(update={"rejected": why[candidate.candidate_id]})
        if candidate.candidate_id in why
        else candidate
        for candidate in candidates
    )
    return told, tuple(trial for trial in trials if trial.status != "not_run")


def evaluate_trials(
    bench: Bench,
    iteration_id: str,
    trials: Sequence[TrialRecord],
    *,
    look: int = 1,
    pace: Pace | None = None,
) -> tuple[TrialRecord, ...]:
    """evaluate: one row per item and seed, kept; a trial that the budget does not cover has no score."""
    name = _look("evaluate", look)
    worst = UNKNOWN_TIME if pace is None else pace.scoring(trials)

    def score() -> tuple[TrialRecord, ...]:
        with bench.spending(name, iteration_id, worst):
            return bench.runner.evaluate(
                trials, splits=("dev", "selection"), label=f"{iteration_id}-look{look}"
            )

    def run() -> Any:
        scored = until_cap(trials, "eval_overrun", score)
        for trial in scored:
            bench.say("evaluate", iteration_id, rulings.describe_trial(trial))
        return _TRIALS.dump_python(tuple(scored), mode="json")

    return _TRIALS.validate_python(bench.step(name, iteration_id, run))


def probe_trials(
    bench: Bench, iteration_id: str, incumbent: Incumbent, trials: Sequence[TrialRecord]
) -> dict[str, list[dict[str, Any]]]:
    """probe: guard metrics of every trial against the incumbent's."""

    def run() -> Any:
        if bench.workspace.probe_file(bench.task).is_file():
            # A probe loads a base of its own, and two may not fit.
            bench.runner.release()
        with bench.spending("probe", iteration_id, NO_TIME):
            return rulings.probe_guards(bench.runner, incumbent, trials, label=iteration_id)

    found: dict[str, list[dict[str, Any]]] = bench.step("probe", iteration_id, run)
    return found


def compare_trials(
    bench: Bench,
    iteration_id: str,
    incumbent: Incumbent,
    trials: Sequence[TrialRecord],
    guards: dict[str, list[dict[str, Any]]],
    *,
    look: int,
) -> tuple[RulingRecord, ...]:
    """compare: paired, per item, with an interval corrected for how many were tried."""

    def run() -> Any:
        found = rulings.rule_on_candidates(bench.runner, incumbent, trials, guards)
        for ruling in found:
            bench.say("compare", iteration_id, f"{ruling.candidate_id}: {ruling.reason}")
        return _RULINGS.dump_python(found, mode="json")

    return _RULINGS.validate_python(bench.step(_look("compare", look), iteration_id, run))


def settle_verdict(
    bench: Bench,
    iteration_id: str,
    incumbent: Incumbent,
    trials: tuple[TrialRecord, ...],
    guards: dict[str, list[dict[str, Any]]],
    first: tuple[RulingRecord, ...],
) -> tuple[Incumbent, tuple[TrialRecord, ...], tuple[RulingRecord, ...]]:
    """verdict: the leader buys the task's further seeds, beside the incumbent's, and is ruled on again."""
    leader, why_not = rulings.leader(first), None
    bought: list[TrialRecord] = []
    more = rulings.further_seeds(bench.runner, iteration_id, incumbent, trials, leader)
    if more:
        bench.say("verdict", iteration_id, f"{leader} leads; {len(more)} more trial(s) on further seeds")
        pace = bench.pace(incumbent)
        trained = train_trials(bench, iteration_id, more, look=2, pace=pace)
        why_not = next((trial.error for trial in trained if trial.status == "not_run"), None)
        bought = [trial for trial in trained if trial.status != "not_run"]
    if bought:
        scored = evaluate_trials(bench, iteration_id, bought, look=2, pace=pace)
        incumbent = rulings.with_trials(incumbent, [t for t in scored if t.candidate_id == INCUMBENT])
        trials = (*trials, *(trial for trial in scored if trial.candidate_id != INCUMBENT))
    contenders = [trial for trial in trials if trial.candidate_id == leader]
    second = compare_trials(bench, iteration_id, incumbent, contenders, guards, look=2) if bought else ()

    def run() -> Any:
        return _RULINGS.dump_python(rulings.settle(first, second, leader, why_not), mode="json")

    final = _RULINGS.validate_python(bench.step("verdict", iteration_id, run))
    return incumbent, trials, final


def decide_iteration(
    bench: Bench,
    iteration_id: str,
    incumbent: Incumbent,
    plan: Plan,
    candidates: Sequence[CandidateRecord],
    trials: Sequence[TrialRecord],
    final: Sequence[RulingRecord],
    started_at: str,
) -> IterationRecord:
    """decide: the whole iteration as one record, its decision in one sentence."""

    def run() -> Any:
        record = rulings.conclude(
            iteration_id=iteration_id,
            started_at=started_at,
            finished_at=bench.clock(),
            plan=plan,
            candidates=candidates,
            trials=(*incumbent.trials, *trials),
            final=final,
            budget=BudgetRecord(spent=bench.ledger.account.spent_in(iteration_id), left=bench.ledger.left()),
        )
        return record.model_dump(mode="json")

    return IterationRecord.model_validate(bench.step("decide", iteration_id, run))


def commit_iteration(bench: Bench, record: IterationRecord, incumbent: Incumbent) -> str:
    """commit: recipe, entry, lineage, scores and report, in one commit on the bakeoff branch."""

    def run() -> Any:
        return publishing.publish(
            workspace=bench.workspace,
            task=bench.task,
            worktree=bench.worktree,
            record=record,
            incumbent=incumbent,
        )

    sha = str(bench.step("commit", record.iteration_id, run))
    settle_ideas(open_queue(bench.workspace, clock=bench.clock), record)
    return sha


def _look(name: str, look: int) -> str:
    return name if look == 1 else f"{name}.look{look}"
