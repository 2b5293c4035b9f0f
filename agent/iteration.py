"""One iteration of the flywheel, top to bottom: its ten steps are the journal's events."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from agent import publishing, rulings, validation
from agent.incumbent import INCUMBENT, Incumbent
from agent.locks import Locks, check_locks
from agent.plan import Plan
from agent.planners.planner import PlanContext, Planner
from agent.progress import Event
from agent.records import CandidateRecord, IterationRecord, RulingRecord, TrialRecord
from agent.trials import TrialRunner
from tools.journal import Journal
from tools.repo import Worktree
from tools.task import Task
from tools.workspace import Workspace

_CANDIDATES = TypeAdapter(tuple[CandidateRecord, ...])
_TRIALS = TypeAdapter(tuple[TrialRecord, ...])
_RULINGS = TypeAdapter(tuple[RulingRecord, ...])


@dataclass(frozen=True)
class Bench:
    """What every step of an iteration works with."""

    workspace: Workspace
    task: Task
    locks: Locks
    journal: Journal
    worktree: Worktree
    runner: TrialRunner
    planner: Planner
    clock: Callable[[], str]
    notify: Callable[[Event], None]

    def step(self, name: str, iteration_id: str, run: Callable[[], Any]) -> Any:
        """Run one step unless the journal holds its result; the locks are checked first."""
        check_locks(self.workspace, self.locks, self.system_prompt_file)

        def announced() -> Any:
            self.notify(Event(name, iteration_id, "started"))
            started = time.monotonic()
            result = run()
            self.notify(Event(name, iteration_id, "done", wall_s=time.monotonic() - started))
            return result

        return self.journal.run_step(name, iteration_id, announced)

    def say(self, step: str, iteration_id: str, text: str) -> None:
        """Tell the watcher something about a step."""
        self.notify(Event(step, iteration_id, "note", text=text))

    @property
    def system_prompt_file(self) -> str | None:
        return self.workspace.load_recipe().system_prompt_file


def run_iteration(
    bench: Bench, iteration_id: str, incumbent: Incumbent, context: Callable[[], PlanContext]
) -> tuple[IterationRecord, Incumbent]:
    """Run one iteration and return its record and the incumbent after it.

    Every step's result is in the journal before the next begins, so that after a crash the
    same call finishes what is missing and repeats nothing.
    """
    started_at = str(bench.step("begin", iteration_id, bench.clock))
    plan = plan_candidates(bench, iteration_id, context)
    candidates = validate_candidates(bench, iteration_id, incumbent, plan)
    candidates = smoke_candidates(bench, iteration_id, candidates)
    trials = train_trials(bench, iteration_id, first_seed_trials(bench, iteration_id, incumbent, candidates))
    trials = evaluate_trials(bench, iteration_id, trials)
    guards = probe_trials(bench, iteration_id, incumbent, trials)
    first = compare_trials(bench, iteration_id, incumbent, trials, guards, look=1)
    incumbent, trials, final = settle_verdict(bench, iteration_id, incumbent, trials, guards, first)
    record = decide_iteration(bench, iteration_id, incumbent, plan, candidates, trials, final, started_at)
    incumbent = rulings.promote(record, incumbent)
    commit_iteration(bench, record, incumbent)
    return record, incumbent


def plan_candidates(bench: Bench, iteration_id: str, context: Callable[[], PlanContext]) -> Plan:
    """plan: ask the planner for patches and a hypothesis."""
    found = bench.step("plan", iteration_id, lambda: bench.planner.plan(context()).model_dump(mode="json"))
    return Plan.model_validate(found)


def validate_candidates(
    bench: Bench, iteration_id: str, incumbent: Incumbent, plan: Plan
) -> tuple[CandidateRecord, ...]:
    """validate: each patch against the allow-list, each recipe against memory and data."""

    def run() -> Any:
        validation.check_data(bench.workspace, bench.task)
        checked = validation.check_proposals(bench.workspace, bench.task, incumbent, plan)
        if any(candidate.rejected for candidate in checked):
            # It may be for want of the very memory in which the worker keeps the base.
            bench.runner.release()
            checked = validation.check_proposals(bench.workspace, bench.task, incumbent, plan)
        for candidate in checked:
            bench.say("validate", iteration_id, validation.describe(candidate))
        return _CANDIDATES.dump_python(checked, mode="json")

    return _CANDIDATES.validate_python(bench.step("validate", iteration_id, run))


def smoke_candidates(
    bench: Bench, iteration_id: str, candidates: Sequence[CandidateRecord]
) -> tuple[CandidateRecord, ...]:
    """smoke: a few rows, a loadable checkpoint, a non-zero eval item; else the recipe is broken."""

    def run() -> Any:
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
    bench: Bench, iteration_id: str, trials: Sequence[TrialRecord], *, look: int = 1
) -> tuple[TrialRecord, ...]:
    """train: the candidates together on one frozen base."""

    def run() -> Any:
        return _TRIALS.dump_python(
            bench.runner.train(trials, label=f"{iteration_id}-look{look}"), mode="json"
        )

    return _TRIALS.validate_python(bench.step(_look("train", look), iteration_id, run))


def evaluate_trials(
    bench: Bench, iteration_id: str, trials: Sequence[TrialRecord], *, look: int = 1
) -> tuple[TrialRecord, ...]:
    """evaluate: one row per item and seed, kept."""

    def run() -> Any:
        scored = bench.runner.evaluate(
            trials, splits=("dev", "selection"), label=f"{iteration_id}-look{look}"
        )
        for trial in scored:
            bench.say("evaluate", iteration_id, rulings.describe_trial(trial))
        return _TRIALS.dump_python(scored, mode="json")

    return _TRIALS.validate_python(bench.step(_look("evaluate", look), iteration_id, run))


def probe_trials(
    bench: Bench, iteration_id: str, incumbent: Incumbent, trials: Sequence[TrialRecord]
) -> dict[str, list[dict[str, Any]]]:
    """probe: guard metrics of every trial against the incumbent's."""

    def run() -> Any:
        if bench.workspace.probe_file(bench.task).is_file():
            # A probe loads a base of its own, and two may not fit.
            bench.runner.release()
        return rulings.probe_guards(bench.runner, incumbent, trials)

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
    leader = rulings.leader(first)
    more = rulings.further_seeds(bench.runner, iteration_id, incumbent, trials, leader)
    if more:
        bench.say("verdict", iteration_id, f"{leader} leads; {len(more)} more trial(s) on further seeds")
        trained = train_trials(bench, iteration_id, more, look=2)
        scored = evaluate_trials(bench, iteration_id, trained, look=2)
        incumbent = rulings.with_trials(incumbent, [t for t in scored if t.candidate_id == INCUMBENT])
        trials = (*trials, *(trial for trial in scored if trial.candidate_id != INCUMBENT))
    contenders = [trial for trial in trials if trial.candidate_id == leader]
    second = compare_trials(bench, iteration_id, incumbent, contenders, guards, look=2) if more else ()

    def run() -> Any:
        return _RULINGS.dump_python(rulings.settle(first, second, leader), mode="json")

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

    return str(bench.step("commit", record.iteration_id, run))


def _look(name: str, look: int) -> str:
    return name if look == 1 else f"{name}.look{look}"
