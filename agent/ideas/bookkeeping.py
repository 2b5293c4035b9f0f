"""The bookkeeping of a bakeoff on the queue: what is offered, what was taken, what came of it.

Each call holds whatever the queue says already, so that an iteration that is resumed after a
kill makes it again without harm.
"""

from __future__ import annotations

from dataclasses import replace

from agent.ideas.idea import Idea
from agent.ideas.queue import IdeaQueue, QueueItem
from agent.plan import Plan, PlanContext
from agent.planners.candidates import CandidateFilter
from agent.planners.quoting import cut
from agent.records import CandidateRecord, IterationRecord
from tools.errors import PatchError

__all__ = ["note_plan", "offer_ideas", "settle_ideas"]


def offer_ideas(queue: IdeaQueue, context: PlanContext, iteration: str) -> PlanContext:
    """Return the context with the ideas that wait, after those that can be tried no more are dropped.

    What an iteration took that was closed before it ended waits again: one flywheel runs at a time.
    """
    for item in queue.items():
        if item.state == "taken" and item.iteration != iteration:
            queue.release(item.id, f"{item.iteration} was closed before it was tried")
    candidates = CandidateFilter(context, max_cost_ratio=float("inf"))
    for item in queue.waiting():
        problem = _patch_problem(item, candidates)
        if problem is not None:
            queue.drop(item.id, problem)
    return replace(context, ideas=queue.waiting())


def note_plan(queue: IdeaQueue, iteration: str, plan: Plan) -> None:
    """Say which ideas a plan tries, and queue the rows that it asks for."""
    for proposal in plan.proposals:
        if proposal.idea is not None:
            queue.take(proposal.idea, iteration)
    if plan.data_request is not None:
        told = cut(f"rows on this are missing: {plan.data_request.focus}", 2000)
        idea = Idea(hypothesis=told, data_request=plan.data_request)
        queue.add(idea, author=plan.planner, origin=f"{iteration}: data_request")


def settle_ideas(queue: IdeaQueue, record: IterationRecord) -> None:
    """Say what came of the ideas that an iteration tried."""
    for candidate in record.candidates:
        if candidate.idea is None:
            continue
        if candidate.is_left_out:
            # What the budget did not cover was not tried: it waits for another run.
            queue.release(candidate.idea, str(candidate.rejected))
        else:
            _settle(queue, record, candidate, candidate.idea)


def _settle(queue: IdeaQueue, record: IterationRecord, candidate: CandidateRecord, item_id: str) -> None:
    ruling = record.ruling(candidate.candidate_id)
    trials = [trial.trial_id for trial in record.own_trials if trial.candidate_id == candidate.candidate_id]
    refused = f"refused: {candidate.rejected}" if candidate.rejected else "it was never trained"
    queue.finish(
        item_id,
        iteration=record.iteration_id,
        candidate=candidate.candidate_id,
        trials=trials,
        verdict=ruling.verdict if ruling else "refused" if candidate.rejected else None,
        gain=ruling.gain if ruling else None,
        reason=ruling.reason if ruling else refused,
    )


def _patch_problem(item: QueueItem, candidates: CandidateFilter) -> str | None:
    """Return why an idea's patch can be tried no more, or None; each idea is looked at alone."""
    if item.idea.patch is None:
        return None
    try:
        candidate = candidates.build(item.idea.patch.values())
    except PatchError as err:
        return f"it does not apply to the incumbent: {err}"
    if candidate is None:
        return "the incumbent has these values already"
    if candidates.is_known(candidate):
        return "its recipe was tried meanwhile"
    return None
