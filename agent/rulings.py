"""From score rows to a decision: compare, rule, buy further seeds, promote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from agent.diagnostics.timing import find_implausibly_fast
from agent.incumbent import INCUMBENT, Incumbent
from agent.plan import Plan
from agent.probing import probe_trial
from agent.records import (
    BudgetRecord,
    CandidateRecord,
    GuardRecord,
    IterationRecord,
    RulingRecord,
    TrialRecord,
)
from agent.secondary import compare_costs
from agent.trials import TrialRunner
from agent.weight_guard import guard_by_weights
from tools.comparison import Scores, compare, corrected_level
from tools.verdict import Guard, Ruling, forbidden_guard, reach_verdict


@dataclass(frozen=True)
class _Tries:
    """How many intervals a bakeoff takes, for which each of them is corrected."""

    candidates: int
    looks: int


Guards = dict[str, list[dict[str, Any]]]
"""Guards of each trial, by trial id, as JSON values."""


def probe_guards(
    runner: TrialRunner, incumbent: Incumbent, trials: Sequence[TrialRecord], *, label: str = ""
) -> Guards:
    """Return the guard metrics of every scored trial against the incumbent's first trial.

    A probe that a cap or a dead process kept from measuring gives a guard that says so.

    Args:
        label: Names this work in the book of retries.
    """
    before = runner.scores(incumbent.trials[0], "selection")
    found: Guards = {}
    for trial in trials:
        if trial.status == "halted":
            # No scores, but a candidate that was tried: intervals are corrected for it at every look.
            found[trial.trial_id] = []
        if not trial.scored:
            continue
        guards = [_guard_record(forbidden_guard(before, runner.scores(trial, "selection")))]
        probed = probe_trial(runner, incumbent.trials[0], trial, label=label)
        if probed is not None:
            guards.append(probed)
        trained = guard_by_weights(runner.workspace, incumbent.trials[0], trial)
        if trained is not None:
            guards.append(_guard_record(trained))
        found[trial.trial_id] = [guard.model_dump(mode="json") for guard in guards]
    return found


def rule_on_candidates(
    runner: TrialRunner,
    incumbent: Incumbent,
    trials: Sequence[TrialRecord],
    guards: Guards,
    *,
    looks: int | None = None,
) -> tuple[RulingRecord, ...]:
    """Rule on every candidate that has a trial here, over the seeds that it and the incumbent share.

    The interval's level is corrected for all candidates of the bakeoff and for the looks at them.

    Args:
        looks: How often a candidate is ruled on; None: twice where the task has further seeds to buy.
    """
    task = runner.task
    names = list(dict.fromkeys(trial.candidate_id for trial in trials))
    tries = _Tries(_tried(guards, names), looks or (2 if len(task.seeds) > 1 else 1))
    return tuple(
        _rule_on(runner, incumbent, name, [t for t in trials if t.candidate_id == name], guards, tries)
        for name in names
    )


def leader(rulings: Sequence[RulingRecord]) -> str | None:
    """Return the candidate that is ahead among those not discarded, or None."""
    open_ones = [ruling for ruling in rulings if ruling.verdict != "discard" and ruling.gain is not None]
    if not open_ones:
        return None
    return max(open_ones, key=lambda ruling: (ruling.gain or 0.0, ruling.candidate_id)).candidate_id


def further_seeds(
    runner: TrialRunner,
    iteration_id: str,
    incumbent: Incumbent,
    trials: Sequence[TrialRecord],
    leading: str | None,
) -> tuple[TrialRecord, ...]:
    """Return the trials that the leader and the incumbent still lack on the task's seeds."""
    if leading is None:
        return ()
    owned = {trial.seed for trial in trials if trial.candidate_id == leading and trial.scored}
    held = {trial.seed for trial in incumbent.trials if trial.scored}
    template = next(trial for trial in trials if trial.candidate_id == leading)
    candidate = CandidateRecord(
        candidate_id=leading, patch={}, recipe=template.recipe, changes=(), hypothesis="further seed"
    )
    more = []
    for seed in runner.task.seeds:
        for who, have in ((incumbent.as_candidate(), held), (candidate, owned)):
            if seed not in have:
                more.append(
                    runner.plan_trial(who, iteration_id=iteration_id, seed=seed, parent_id=incumbent.trial_id)
                )
    return tuple(more)


def with_trials(incumbent: Incumbent, trials: Iterable[TrialRecord]) -> Incumbent:
    """Return the incumbent with further scored trials."""
    fresh = tuple(trial for trial in trials if trial.scored)
    return incumbent.model_copy(update={"trials": (*incumbent.trials, *fresh)})


def settle(
    first: Sequence[RulingRecord],
    second: Sequence[RulingRecord],
    leading: str | None,
    not_bought: str | None = None,
) -> tuple[RulingRecord, ...]:
    """Return the last word on every candidate: only the leader can be kept.

    Another candidate that beat the incumbent on the first seed stays open: it was not
    confirmed on further seeds, because the leader was.

    Args:
        not_bought: Why the leader has not got all of its seeds; None where it has.
    """
    later = {ruling.candidate_id: ruling for ruling in second}
    final = []
    for ruling in first:
        last = later.get(ruling.candidate_id, ruling)
        if last.verdict == "keep" and last.candidate_id != leading:
            reason = f"{last.reason}; not promoted, because {leading} was ahead in the same bakeoff"
            last = last.model_copy(update={"verdict": "inconclusive", "reason": reason})
        if not_bought is not None and last.candidate_id == leading:
            told = f"{last.reason}; not all of the task's seeds were bought ({not_bought})"
            last = last.model_copy(update={"reason": told})
        final.append(last)
    return tuple(final)


def conclude(
    *,
    iteration_id: str,
    started_at: str,
    finished_at: str,
    plan: Plan,
    candidates: Sequence[CandidateRecord],
    trials: Sequence[TrialRecord],
    final: Sequence[RulingRecord],
    budget: BudgetRecord | None = None,
) -> IterationRecord:
    """Return the iteration as one record, with its decision in one sentence."""
    kept = next((ruling for ruling in final if ruling.verdict == "keep"), None)
    return IterationRecord(
        iteration_id=iteration_id,
        started_at=started_at,
        finished_at=finished_at,
        wall_s=round(
            sum(t.train_s + t.eval_s for t in trials if t.trial_id.startswith(f"{iteration_id}-")), 3
        ),
        planner=plan.planner,
        hypothesis=plan.hypothesis,
        candidates=tuple(candidates),
        trials=tuple(trials),
        rulings=tuple(final),
        promoted=kept.candidate_id if kept else None,
        decision=_decision(kept, candidates, final),
        notes=_notes(plan, trials),
        planner_usage=plan.usage,
        budget=budget,
        background_additions=plan.background_additions,
    )


def promote(record: IterationRecord, incumbent: Incumbent) -> Incumbent:
    """Return the incumbent after the iteration: the kept candidate, or the same as before."""
    if record.promoted is None:
        return incumbent
    winner = next(c for c in record.candidates if c.candidate_id == record.promoted)
    # Renamed, or the next iteration's candidate of the same number would be taken for it.
    trials = tuple(
        trial.model_copy(update={"candidate_id": INCUMBENT})
        for trial in record.trials_of(record.promoted)
        if trial.scored
    )
    return incumbent.model_copy(
        update={"recipe": winner.recipe, "trials": trials, "since": record.iteration_id}
    )


def describe_trial(trial: TrialRecord) -> str:
    """Return one line on a trial for a person who watches."""
    if not trial.scored:
        return f"{trial.trial_id}: {trial.status}: {trial.error}"
    return (
        f"{trial.trial_id}: dev {_percent(trial.dev)}, selection {_percent(trial.selection)}, "
        f"{trial.steps} steps, {trial.train_s:.0f} s training + {trial.eval_s:.0f} s scoring"
    )


def _rule_on(
    runner: TrialRunner,
    incumbent: Incumbent,
    name: str,
    trials: Sequence[TrialRecord],
    guards: Guards,
    tries: _Tries,
) -> RulingRecord:
    scored = [trial for trial in trials if trial.scored]
    if not scored:
        told = trials[0].error or "the trial failed"
        reason = told if trials[0].status == "halted" else f"no scores: {told}"
        # What a cap ended says nothing about the recipe.
        ended = any(trial.status.endswith("_overrun") for trial in trials)
        return RulingRecord(candidate_id=name, verdict="inconclusive" if ended else "discard", reason=reason)
    seeds = {trial.seed for trial in scored} & {trial.seed for trial in incumbent.trials if trial.scored}
    base_rows, rows = _rows(runner, incumbent.trials, seeds), _rows(runner, scored, seeds)
    held = [GuardRecord.model_validate(guard) for trial in scored for guard in guards.get(trial.trial_id, [])]
    ruling = reach_verdict(
        compare(
            Scores.from_rows(base_rows),
            Scores.from_rows(rows),
            level=corrected_level(runner.task.level, tries.candidates, tries.looks),
        ),
        minimum_gain=runner.task.minimum_gain,
        n_candidates=tries.candidates,
        n_looks=tries.looks,
        guards=tuple(_guard(record) for record in held if record.measured),
    )
    costs = compare_costs(
        [trial for trial in incumbent.trials if trial.scored and trial.seed in seeds],
        [trial for trial in scored if trial.seed in seeds],
        base_rows=base_rows,
        candidate_rows=rows,
        level=runner.task.level,
    )
    found = _ruling_record(name, ruling, held).model_copy(update={"secondary": costs})
    unknown = "; ".join(f"{record.name}: {record.detail}" for record in held if not record.measured)
    if unknown and found.verdict == "keep":
        reason = f"{found.reason}; but not kept, for a guard is unknown: {unknown}"
        return found.model_copy(update={"verdict": "inconclusive", "reason": reason})
    return found


def _rows(runner: TrialRunner, trials: Iterable[TrialRecord], seeds: set[int]) -> list[Any]:
    return [row for trial in trials if trial.seed in seeds for row in runner.scores(trial, "selection")]


def _tried(guards: Guards, names: Sequence[str]) -> int:
    """Count the candidates that were scored, or halted, in the whole bakeoff, whatever the look."""
    return max(1, len({trial_id.split("-")[1] for trial_id in guards} | set(names)))


def _ruling_record(name: str, ruling: Ruling, guards: Sequence[GuardRecord]) -> RulingRecord:
    found = ruling.comparison
    return RulingRecord.model_validate(
        {
            "candidate_id": name,
            "verdict": ruling.verdict.value,
            "reason": ruling.reason,
            "gain": found.gain,
            "low": found.low,
            "high": found.high,
            "level": found.level,
            "n_items": found.n_items,
            "n_seeds": found.n_seeds_candidate,
            "base_mean": found.base_mean,
            "candidate_mean": found.candidate_mean,
            "p_value": found.p_value,
            "guards": tuple(guards),
        }
    )


def _guard_record(guard: Guard) -> GuardRecord:
    return GuardRecord(name=guard.name, passed=guard.passed, detail=guard.detail)


def _guard(record: GuardRecord) -> Guard:
    return Guard(name=record.name, base=None, candidate=None, passed=record.passed, detail=record.detail)


def _notes(plan: Plan, trials: Sequence[TrialRecord]) -> tuple[str, ...]:
    """Return what a person should read beside the decision: the planner's words, and what looks odd."""
    asked = plan.data_request
    said = (
        *plan.notes.splitlines(),
        f"the planner asks for {asked.rows} training rows: {asked.focus}" if asked else "",
        "the planner would add to BACKGROUND.md what stands in BACKGROUND.additions.md"
        if plan.background_additions
        else "",
        _saved_by_search(trials),
        *map(str, find_implausibly_fast([trial for trial in trials if trial.candidate_id != INCUMBENT])),
    )
    return tuple(note for note in said if note.strip())


def _saved_by_search(trials: Sequence[TrialRecord]) -> str:
    halted = [trial for trial in trials if trial.status == "halted"]
    if not halted:
        return ""
    rivals = [trial for trial in trials if trial.candidate_id != INCUMBENT and trial.seed == halted[0].seed]
    saved = sum(trial.total_steps - trial.steps for trial in halted)
    return (
        f"the search halted {len(halted)} of {len(rivals)} candidates by their dev scores on the way "
        f"and saved {saved} of {sum(trial.total_steps for trial in rivals)} steps"
    )


def _decision(
    kept: RulingRecord | None, candidates: Sequence[CandidateRecord], final: Sequence[RulingRecord]
) -> str:
    if kept is not None:
        winner = next(c for c in candidates if c.candidate_id == kept.candidate_id)
        return f"Keep {kept.candidate_id} ({', '.join(winner.changes)}): {kept.reason}."
    if not final:
        reasons = "; ".join(f"{c.candidate_id}: {c.rejected}" for c in candidates if c.rejected)
        return f"Keep the incumbent: no candidate could be trained ({reasons or 'none was proposed'})."
    best = max(final, key=lambda ruling: -1.0 if ruling.gain is None else ruling.gain)
    return (
        f"Keep the incumbent: no candidate won by the rule; the nearest, {best.candidate_id}: {best.reason}."
    )


def _percent(score: float | None) -> str:
    return "unknown" if score is None else f"{100 * score:.1f}%"


__all__ = [
    "INCUMBENT",
    "conclude",
    "describe_trial",
    "further_seeds",
    "leader",
    "probe_guards",
    "promote",
    "rule_on_candidates",
    "settle",
    "with_trials",
]
