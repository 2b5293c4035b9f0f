"""What every planner owes the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.plan import BudgetLeft, Plan, PlanContext, TrialSummary
from agent.planners import ClaudePlanner, FixedPlanner, OptunaPlanner, Planner
from agent.planners.candidates import recipe_key
from agent.planners.messages_client import MessagesServer
from tests.agent.planners.messages_api import serve_messages, submit
from tools.errors import PlannerError
from tools.patch import apply_patch

Contexts = Callable[..., PlanContext]


@pytest.fixture(params=["optuna", "fixed", "claude"])
def planner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Planner]:
    rates = [f"{rate}e-4" for rate in range(2, 40)]
    if request.param == "optuna":
        yield OptunaPlanner(seed=7)
    elif request.param == "fixed":
        path = tmp_path / "plan.yaml"
        path.write_text("\n".join(f"- learning_rate: {rate}" for rate in rates), encoding="utf-8")
        yield FixedPlanner(path)
    else:
        # A model that proposes far too much, whatever was tried, and mends nothing.
        with serve_messages(submit(*({"learning_rate": rate} for rate in rates)), repeats=True) as api:
            yield ClaudePlanner("scripted", server=MessagesServer(api.url))


def test_it_is_a_planner_with_a_name(planner: Planner) -> None:
    assert isinstance(planner, Planner)
    assert planner.name


def test_its_proposals_apply_and_differ_from_each_other_and_from_what_was_tried(
    planner: Planner, make_context: Contexts
) -> None:
    context = make_context()
    tried = {recipe_key(context.incumbent)}
    history = list(context.history)
    for _ in range(8):
        plan = planner.plan(make_context(history=tuple(history)))
        assert plan.planner == planner.name
        assert len(plan.proposals) == 3
        for proposal in plan.proposals:
            recipe = apply_patch(context.incumbent, proposal.patch)
            assert recipe_key(recipe) not in tried
            tried.add(recipe_key(recipe))
            history.append(TrialSummary(f"t{len(history)}", recipe, 0.4, "discard"))


def test_a_rebuilt_history_gives_the_same_plan(planner: Planner, make_context: Contexts) -> None:
    plan = planner.plan(make_context())
    assert planner.plan(make_context()) == plan
    assert Plan.from_mapping(plan.to_dict()) == plan


def test_it_never_plans_more_trials_than_are_left(planner: Planner, make_context: Contexts) -> None:
    plan = planner.plan(make_context(budget_left=BudgetLeft(trials=2)))
    assert len(plan.proposals) == 2
    with pytest.raises(PlannerError, match="0 trials left"):
        planner.plan(make_context(budget_left=BudgetLeft(trials=0)))


def test_a_seed_of_a_tried_recipe_is_no_new_recipe(planner: Planner, make_context: Contexts) -> None:
    first = planner.plan(make_context(n_candidates=1)).proposals[0]
    start = make_context().incumbent
    tried = apply_patch(start, first.patch).replace(seed=99, notes="again", output_dir="elsewhere")
    history = (TrialSummary("t0", start, 0.3, "baseline"), TrialSummary("t1", tried, None, "crash"))
    again = planner.plan(make_context(history=history, n_candidates=1)).proposals[0]
    assert recipe_key(apply_patch(start, again.patch)) != recipe_key(tried)
