"""One re-run, top to bottom: both recipes trained again under the same seeds, and ruled on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from agent import iteration, rulings, validation
from agent.bench import Bench
from agent.incumbent import INCUMBENT, Incumbent
from agent.records import CandidateRecord, IterationRecord, RulingRecord, TrialRecord
from agent.rerun.ground import move_to_base
from agent.rerun.log import RERUN_PLANNER
from agent.rerun.outcome import Outcome, judge, tell
from agent.rerun.pair import Pair
from agent.rerun.publishing import publish_rerun
from tools.errors import BakehouseError, RerunError
from tools.patch import diff_recipes

__all__ = ["RerunRecord", "run_pair"]

_CANDIDATE = "c1"
_CANDIDATES = TypeAdapter(tuple[CandidateRecord, ...])
_RULINGS = TypeAdapter(tuple[RulingRecord, ...])


@dataclass(frozen=True)
class RerunRecord:
    """A finished re-run."""

    record: IterationRecord
    outcome: Outcome
    commit: str

    @property
    def ruling(self) -> RulingRecord | None:
        return self.record.ruling(_CANDIDATE)


def run_pair(bench: Bench, rerun_id: str, pair: Pair) -> RerunRecord:
    """Measure a pair again, and commit what came of it on the bakeoff branch.

    Every step's result is in the journal before the next begins, so that after a crash the same
    call finishes what is missing and repeats nothing.

    Raises:
        RerunError: one of the recipes cannot be trained here; nothing was measured or committed.
        BudgetError: a cap leaves no room for the next step.
    """
    started_at = str(bench.step("begin", rerun_id, bench.clock))
    sides = _validate(bench, rerun_id, pair)
    sides = iteration.smoke_candidates(bench, rerun_id, sides)
    _check_sides(sides)
    trials = _plan_trials(bench, rerun_id, pair, sides)
    # Both are measured to the end: a pair is compared, no winner is looked for.
    trials = iteration.train_trials(bench, rerun_id, trials, search=False)
    trials = iteration.evaluate_trials(bench, rerun_id, trials)
    failure = "; ".join(f"{trial.trial_id}: {trial.error}" for trial in trials if not trial.scored)
    ruling = None if failure else _rule(bench, rerun_id, trials)
    record = _decide(bench, rerun_id, pair, sides[1], trials, ruling, failure, started_at)
    outcome = judge(pair, ruling)

    def commit() -> Any:
        return publish_rerun(bench, pair, record, outcome, sides)

    return RerunRecord(record, outcome, str(bench.step("commit", rerun_id, commit)))


def _validate(bench: Bench, rerun_id: str, pair: Pair) -> tuple[CandidateRecord, ...]:
    """validate: both recipes on the base model of today, against memory and data."""

    def run() -> Any:
        before, after = move_to_base(pair, bench.workspace.load_recipe().base_model)
        for recipe in (before, after):
            validation.check_data(bench.workspace, bench.task, recipe)
        changes = tuple(str(change) for change in diff_recipes(before, after.replace(seed=before.seed)))
        asked = f"Does {pair.candidate_trial} of {pair.entry.slug} still do what it did?"
        sides = (
            CandidateRecord(
                candidate_id=INCUMBENT,
                patch={},
                recipe=before.to_dict(),
                changes=(),
                hypothesis="the recipe to beat, as it was then",
            ),
            CandidateRecord(
                candidate_id=_CANDIDATE,
                patch={},
                recipe=after.to_dict(),
                changes=changes,
                hypothesis=asked,
            ),
        )
        checked = [_checked(bench, side) for side in sides]
        for side in checked:
            told = side.rejected or ", ".join(side.changes) or side.hypothesis
            bench.say("validate", rerun_id, f"{side.candidate_id}: {told}")
        return _CANDIDATES.dump_python(tuple(checked), mode="json")

    return _CANDIDATES.validate_python(bench.step("validate", rerun_id, run))


def _check_sides(sides: Sequence[CandidateRecord]) -> None:
    refused = [f"{side.candidate_id}: {side.rejected}" for side in sides if side.rejected]
    if refused:
        raise RerunError(f"it cannot be trained here: {'; '.join(refused)}")


def _checked(bench: Bench, side: CandidateRecord) -> CandidateRecord:
    try:
        validation.check_recipe(bench.workspace, side.train_recipe)
    except BakehouseError as err:
        return side.model_copy(update={"rejected": str(err)})
    return side


def _plan_trials(
    bench: Bench, rerun_id: str, pair: Pair, sides: Sequence[CandidateRecord]
) -> tuple[TrialRecord, ...]:
    """Return the trials of both, the incumbent's first, under the seeds of the entry."""
    parent = f"{rerun_id}-{INCUMBENT}-s{pair.seeds[0]}"
    return tuple(
        bench.runner.plan_trial(
            side, iteration_id=rerun_id, seed=seed, parent_id="" if side.candidate_id == INCUMBENT else parent
        )
        for side in sides
        for seed in pair.seeds
    )


def _rule(bench: Bench, rerun_id: str, trials: Sequence[TrialRecord]) -> RulingRecord:
    """probe and compare: the guards and the rule of every bakeoff, on one pair looked at once."""
    before = tuple(trial for trial in trials if trial.candidate_id == INCUMBENT)
    after = tuple(trial for trial in trials if trial.candidate_id != INCUMBENT)
    incumbent = Incumbent(recipe=before[0].recipe, trials=before, since=rerun_id, locks=bench.locks)
    guards = iteration.probe_trials(bench, rerun_id, incumbent, after)

    def run() -> Any:
        found = rulings.rule_on_candidates(bench.runner, incumbent, after, guards, looks=1)
        for ruling in found:
            bench.say("compare", rerun_id, f"{ruling.candidate_id}: {ruling.reason}")
        return _RULINGS.dump_python(found, mode="json")

    (ruling,) = _RULINGS.validate_python(bench.step("compare", rerun_id, run))
    return ruling


def _decide(
    bench: Bench,
    rerun_id: str,
    pair: Pair,
    candidate: CandidateRecord,
    trials: tuple[TrialRecord, ...],
    ruling: RulingRecord | None,
    failure: str,
    started_at: str,
) -> IterationRecord:
    """decide: the re-run as one record, its decision in one sentence."""

    def run() -> Any:
        record = IterationRecord(
            iteration_id=rerun_id,
            started_at=started_at,
            finished_at=bench.clock(),
            wall_s=round(sum(trial.train_s + trial.eval_s for trial in trials), 3),
            planner=RERUN_PLANNER,
            hypothesis=candidate.hypothesis,
            candidates=(candidate,),
            trials=trials,
            rulings=() if ruling is None else (ruling,),
            promoted=_CANDIDATE if ruling is not None and ruling.verdict == "keep" else None,
            decision=tell(pair, ruling, judge(pair, ruling), failure),
            notes=tuple(_notes(pair, candidate)),
        )
        return record.model_dump(mode="json")

    return IterationRecord.model_validate(bench.step("decide", rerun_id, run))


def _notes(pair: Pair, candidate: CandidateRecord) -> list[str]:
    found = [f"recipes of {pair.candidate_trial} and its incumbent as commit {pair.source[:12]} has them"]
    if candidate.train_recipe.base_model != pair.provenance.base_model:
        found.append(f"on {candidate.train_recipe.base_model}; then on {pair.provenance.base_model}")
    effect, ends = pair.provenance.effect, pair.provenance.interval
    if effect is not None:
        span = "" if ends is None else f" ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})"
        found.append(f"the gain was then {100 * effect:+.1f} points{span}")
    return found
