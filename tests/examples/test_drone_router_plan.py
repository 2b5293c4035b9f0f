"""The planned bakeoff of examples/drone-router: every patch may be tried, and asks one question at first."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from agent.plan import PlanContext, TrialSummary
from agent.planners.fixed import FixedPlanner
from tools.patch import apply_patch
from tools.patch_space import PatchSpace
from tools.recipe import TrainRecipe
from tools.task import Task

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "drone-router"


def test_the_plan_fills_two_iterations_of_the_examples_own_task() -> None:
    task = Task.from_yaml(EXAMPLE / "task.yaml")
    space = PatchSpace.from_mapping(task.patch_space)
    start = TrainRecipe.from_yaml(EXAMPLE / "recipe.yaml")
    planner = FixedPlanner(EXAMPLE / "plan.yaml")
    context = PlanContext(start, 0.15, n_candidates=task.bakeoff.candidates, patch_space=space)
    first = planner.plan(context)
    assert [sorted(proposal.patch.values()) for proposal in first.proposals] == [
        ["epochs"],
        ["lora_target_modules"],
        ["lora_alpha", "lora_rank"],
    ]
    recipes = [apply_patch(start, proposal.patch, space=space) for proposal in first.proposals]
    tried = tuple(
        TrialSummary(f"i0001-c{number}-s17", recipe, 0.4, "discard")
        for number, recipe in enumerate(recipes, start=1)
    )
    second = planner.plan(dataclasses.replace(context, incumbent=recipes[0], history=tried, iteration=2))
    assert len(second.proposals) == task.bakeoff.candidates
    for proposal in (*first.proposals, *second.proposals):
        assert proposal.expected_gain is not None
        assert len(proposal.hypothesis) > 40
