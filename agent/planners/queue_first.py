"""The queue-first planner: ideas that wait are tried before another planner is asked for more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent.ideas.queue import QueueItem
from agent.plan import Plan, PlanContext, Proposal, TrialSummary
from agent.planners.candidates import Candidate, CandidateFilter
from agent.planners.planner import Planner
from agent.planners.quoting import cut
from tools.errors import PatchError, PlannerError

__all__ = ["QueueFirstPlanner", "propose_idea"]


class QueueFirstPlanner:
    """Proposes the patches of the queue in their order, and inner's own for what is left.

    A patch that does not apply any more, was tried or costs too much is left in the queue: who
    keeps the queue decides on it.
    """

    def __init__(self, inner: Planner, *, max_cost_ratio: float = 4.0) -> None:
        """Make a planner around another.

        Args:
            inner: Fills the places that the queue leaves.
            max_cost_ratio: Most that a candidate of the queue may cost, the incumbent being 1.
        """
        self.inner = inner
        self.max_cost_ratio = max_cost_ratio

    @property
    def name(self) -> str:
        """The inner planner's: every proposal of the queue names its own author."""
        return self.inner.name

    def plan(self, context: PlanContext) -> Plan:
        """Return a plan of both.

        Raises:
            PlannerError: neither has anything to propose.
        """
        candidates = CandidateFilter(context, self.max_cost_ratio)
        wanted = candidates.n_wanted()
        taken: list[tuple[QueueItem, Candidate]] = []
        for item in context.ideas:
            candidate = _take(item, candidates) if len(taken) < wanted else None
            if candidate is not None:
                taken.append((item, candidate))
        if not taken:
            return self.inner.plan(context)
        proposals = tuple(propose_idea(item, candidate) for item, candidate in taken)
        names = ", ".join(item.id for item, _ in taken)
        said = f"from the queue: {names}"
        if len(taken) == wanted:
            plan = Plan(planner=self.name, hypothesis=f"Ideas that waited: {names}.", proposals=proposals)
        else:
            plan = self._fill(context, [candidate for _, candidate in taken], proposals)
        return plan.model_copy(update={"notes": cut("\n".join(filter(None, (said, plan.notes))), 8000)})

    def _fill(
        self, context: PlanContext, taken: Sequence[Candidate], proposals: tuple[Proposal, ...]
    ) -> Plan:
        left = context.budget_left.trials
        rest = replace(
            context,
            n_candidates=context.n_candidates - len(taken),
            # What is in the plan already counts as tried, so that nothing comes twice.
            history=(
                *context.history,
                *(
                    TrialSummary(f"queued-{number}", candidate.recipe, None, "queued")
                    for number, candidate in enumerate(taken, start=1)
                ),
            ),
            budget_left=replace(context.budget_left, trials=None if left is None else left - len(taken)),
        )
        try:
            plan = self.inner.plan(rest)
        except PlannerError as err:
            said = f"{self.name} proposes nothing beside them: {err}"
            return Plan(
                planner=self.name, hypothesis="Ideas that waited.", proposals=proposals, notes=cut(said, 8000)
            )
        return plan.model_copy(update={"proposals": (*proposals, *plan.proposals)})


def propose_idea(item: QueueItem, candidate: Candidate) -> Proposal:
    """Return the proposal that an idea of the queue makes as a candidate."""
    return Proposal(
        patch=candidate.patch,
        hypothesis=item.idea.hypothesis,
        expected_gain=item.idea.expected_gain,
        idea=item.id,
        author=item.author,
    )


def _take(item: QueueItem, candidates: CandidateFilter) -> Candidate | None:
    if item.idea.patch is None:
        return None
    try:
        candidate = candidates.build(item.idea.patch.values())
    except PatchError:
        return None
    if candidate is None or candidates.is_too_slow(candidate.patch.values()):
        return None
    return candidate if candidates.add(candidate) else None
