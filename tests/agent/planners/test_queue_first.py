"""The planner that tries what waits before it asks another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.ideas.bookkeeping import note_plan, offer_ideas
from agent.ideas.idea import Idea
from agent.ideas.queue import IdeaQueue, QueueItem
from agent.plan import BudgetLeft, DataRequest, Plan, PlanContext, Proposal
from agent.planners import FixedPlanner, OptunaPlanner
from agent.planners.candidates import recipe_key
from agent.planners.queue_first import QueueFirstPlanner
from tools.errors import PlannerError
from tools.patch import apply_patch, patch_from_mapping
from tools.patch_space import PatchSpace

Contexts = Callable[..., PlanContext]


def item(number: int, **values: Any) -> QueueItem:
    idea = Idea(hypothesis=f"idea {number}", expected_gain=0.1, patch=patch_from_mapping(values))
    return QueueItem(id=f"q{number:04d}", idea=idea, author="ideator/tiny", at="2026-01-01")


def fixed(tmp_path: Path, *rates: str) -> FixedPlanner:
    path = tmp_path / "plan.yaml"
    path.write_text("\n".join(f"- learning_rate: {rate}" for rate in rates), encoding="utf-8")
    return FixedPlanner(path)


def test_ideas_come_first_and_the_inner_planner_fills_up_without_a_double(
    make_context: Contexts, tmp_path: Path
) -> None:
    context = make_context(ideas=(item(1, learning_rate=7e-4), item(2, learning_rate=8e-4)))
    plan = QueueFirstPlanner(fixed(tmp_path, "8e-4", "9e-4")).plan(context)
    assert plan.planner == "fixed"
    assert [(p.idea, p.author, p.patch.learning_rate) for p in plan.proposals] == [
        ("q0001", "ideator/tiny", 7e-4),
        ("q0002", "ideator/tiny", 8e-4),
        (None, None, 9e-4),
    ]
    assert plan.proposals[0].expected_gain == 0.1
    assert plan.notes.startswith("from the queue: q0001, q0002")
    assert Plan.from_mapping(plan.to_dict()) == plan


def test_a_full_queue_needs_nobody_else_and_an_exhausted_one_is_no_obstacle(
    make_context: Contexts, tmp_path: Path
) -> None:
    ideas = tuple(item(n, learning_rate=n * 1e-4) for n in range(2, 8))
    plan = QueueFirstPlanner(fixed(tmp_path, "1e-4")).plan(make_context(ideas=ideas))
    assert [proposal.idea for proposal in plan.proposals] == ["q0002", "q0003", "q0004"]
    # The inner planner has nothing left: the incumbent's own rate is its only entry.
    short = QueueFirstPlanner(fixed(tmp_path, "1e-4")).plan(make_context(ideas=ideas[:1]))
    assert [proposal.idea for proposal in short.proposals] == ["q0002"]
    assert "proposes nothing beside them" in short.notes
    with pytest.raises(PlannerError, match="exhausted"):
        QueueFirstPlanner(fixed(tmp_path, "1e-4")).plan(make_context())


def test_no_more_are_taken_than_trials_are_left(make_context: Contexts) -> None:
    ideas = (item(1, learning_rate=7e-4), item(2, learning_rate=8e-4))
    planner = QueueFirstPlanner(OptunaPlanner(seed=3))
    one = planner.plan(make_context(ideas=ideas, budget_left=BudgetLeft(trials=1)))
    assert [proposal.idea for proposal in one.proposals] == ["q0001"]
    both = planner.plan(make_context(ideas=ideas[:1], budget_left=BudgetLeft(trials=2)))
    assert [proposal.idea for proposal in both.proposals] == ["q0001", None]
    recipes = [apply_patch(make_context().incumbent, p.patch) for p in both.proposals]
    assert len({recipe_key(recipe) for recipe in recipes}) == 2


def test_what_is_too_dear_waits_and_a_request_for_rows_is_no_candidate(make_context: Contexts) -> None:
    dear = item(1, epochs=10.0, lora_rank=256, lora_alpha=256)
    rows = QueueItem(
        id="q0002",
        idea=Idea(hypothesis="h", data_request=DataRequest(focus="hover")),
        author="a",
        at="2026-01-01",
    )
    plan = QueueFirstPlanner(OptunaPlanner(seed=3)).plan(make_context(ideas=(dear, rows)))
    assert all(proposal.idea is None for proposal in plan.proposals)


def test_offering_drops_what_can_be_tried_no_more_and_puts_back_what_was_cut_off(
    make_context: Contexts, tmp_path: Path
) -> None:
    queue = IdeaQueue(tmp_path / "ideas.jsonl")
    for values in ({"lora_rank": 8}, {"weight_decay": 0.1}, {"learning_rate": 7e-4}, {"lora_rank": 32}):
        assert queue.add(Idea(hypothesis="h", patch=patch_from_mapping(values)), author="a")
    queue.take("q0003", "i0001")
    queue.take("q0004", "i0002")
    space = PatchSpace.from_mapping({"weight_decay": False})
    offered = offer_ideas(queue, make_context(patch_space=space), "i0002")
    assert [one.id for one in offered.ideas] == ["q0003"]
    states = {one.id: (one.state, one.reason) for one in queue.items()}
    assert states["q0001"] == ("dropped", "the incumbent has these values already")
    assert states["q0002"][0] == "dropped"
    assert "does not apply" in states["q0002"][1]
    assert states["q0003"] == ("queued", "i0001 was closed before it was tried")
    assert states["q0004"][0] == "taken"


def test_a_plan_takes_its_ideas_and_queues_its_request_once(tmp_path: Path) -> None:
    queue = IdeaQueue(tmp_path / "ideas.jsonl")
    patch = patch_from_mapping({"learning_rate": 7e-4})
    queue.add(Idea(hypothesis="h", patch=patch), author="a")
    plan = Plan(
        planner="claude/tiny",
        hypothesis="two kinds are confused",
        proposals=(Proposal(patch=patch, hypothesis="h", idea="q0001"),),
        data_request=DataRequest(focus="hover against loiter", rows=30),
    )
    for _ in range(2):
        note_plan(queue, "i0005", plan)
    taken, asked = queue.items()
    assert (taken.state, taken.iteration) == ("taken", "i0005")
    assert asked.idea.hypothesis == "rows on this are missing: hover against loiter"
    assert (asked.state, asked.author, asked.idea.data_request) == (
        "queued",
        "claude/tiny",
        plan.data_request,
    )
