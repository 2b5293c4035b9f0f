"""The search: what it begins with, what it learns from, where it stops."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pytest

from agent.plan import BudgetLeft, OnTheWay, Plan, PlanContext, TrialSummary
from agent.planners.candidates import recipe_key, relative_cost
from agent.planners.optuna_planner import OptunaPlanner
from tools.errors import PlannerError
from tools.patch import apply_patch
from tools.patch_space import PROJECTIONS, PatchSpace
from tools.recipe import TrainRecipe

Contexts = Callable[..., PlanContext]


def _score(recipe: TrainRecipe) -> float:
    """A smooth stand-in for a task, best where no prior lies: rate 5e-3, rank 64, 6 passes, batch 8."""
    rate = abs(math.log10(recipe.learning_rate / 5e-3))
    rank = abs(math.log2(recipe.lora_rank / 64))
    passes = abs((recipe.epochs or 0) - 6)
    batch = abs(math.log2(recipe.global_batch_size / 8))
    return max(0.0, 1 - 0.3 * rate - 0.04 * rank - 0.06 * passes - 0.05 * batch)


def _search(planner: OptunaPlanner, context: PlanContext, iterations: int) -> list[TrialSummary]:
    history = list(context.history)
    for _ in range(iterations):
        best = max(history, key=lambda trial: trial.score or 0)
        plan = planner.plan(
            PlanContext(best.recipe, best.score, context.n_candidates, tuple(history), n_train_rows=400)
        )
        for proposal in plan.proposals:
            recipe = apply_patch(best.recipe, proposal.patch)
            history.append(TrialSummary(f"t{len(history)}", recipe, _score(recipe), "discard"))
    return history


def test_the_first_candidates_are_the_priors_of_the_literature(make_context: Contexts) -> None:
    plan = OptunaPlanner().plan(make_context())
    first = apply_patch(make_context().incumbent, plan.proposals[0].patch)
    assert (first.learning_rate, first.lora_rank, first.lora_alpha, first.epochs) == (1e-3, 16, 32, 2.0)
    assert set(first.lora_target_modules) == set(PROJECTIONS)
    assert plan.proposals[0].hypothesis.startswith("Raise lora_rank from 8 to 16 (2x), raise lora_alpha")
    assert "learning_rate from 0.0001 to 0.001 (10x)" in plan.proposals[0].hypothesis


def test_a_second_flywheel_goes_on_where_the_first_stopped(make_context: Contexts) -> None:
    history = _search(OptunaPlanner(3), make_context(), iterations=3)
    later = _search(OptunaPlanner(3), make_context(history=tuple(history)), iterations=3)
    assert [trial.recipe for trial in later[: len(history)]] == [trial.recipe for trial in history]
    assert len({recipe_key(trial.recipe) for trial in later}) == len(later)
    assert later == _search(OptunaPlanner(3), make_context(), iterations=6)


def test_the_search_finds_better_recipes_than_the_priors(make_context: Contexts) -> None:
    gains = []
    for seed in range(5):
        history = _search(OptunaPlanner(seed), make_context(), iterations=7)
        scores = [trial.score or 0 for trial in history]
        gains.append(max(scores) - max(scores[:4]))
    assert min(gains) > 0.1


def test_another_seed_draws_other_candidates(make_context: Contexts) -> None:
    history = tuple(_search(OptunaPlanner(0), make_context(), iterations=2))
    plans = {OptunaPlanner(seed).plan(make_context(history=history)) for seed in range(4)}
    assert len(plans) > 1


def test_a_recipe_that_crashed_is_never_proposed_again_and_one_never_judged_may_be(
    make_context: Contexts,
) -> None:
    start = make_context().incumbent
    prior = apply_patch(start, OptunaPlanner().plan(make_context()).proposals[0].patch)

    def first_after(status: str) -> TrainRecipe:
        history = (*make_context().history, TrialSummary("t1", prior, None, status))
        return apply_patch(start, OptunaPlanner().plan(make_context(history=history)).proposals[0].patch)

    assert first_after("crash") != prior
    assert first_after("harness_abort") == prior


def test_crashes_and_scores_of_nan_do_not_break_the_search(make_context: Contexts) -> None:
    history = _search(OptunaPlanner(), make_context(), iterations=2)
    broken = [
        TrialSummary(f"x{number}", trial.recipe.replace(weight_decay=0.3), score, "crash")
        for number, (trial, score) in enumerate(zip(history, (None, float("nan")) * 9, strict=False))
    ]
    assert len(OptunaPlanner().plan(make_context(history=(*history, *broken))).proposals) == 3
    only_crashes = tuple(TrialSummary(t.trial_id, t.recipe, None, "crash") for t in history)
    unknown = make_context(history=only_crashes, incumbent_score=None)
    assert len(OptunaPlanner().plan(unknown).proposals) == 3


def test_a_trial_that_a_search_halted_teaches_by_how_it_did(make_context: Contexts) -> None:
    tried = _search(OptunaPlanner(), make_context(), iterations=4)

    def plan_after(scores: list[float]) -> Plan:
        halted = [
            TrialSummary(trial.trial_id, trial.recipe, None, "discard", halted=OnTheWay(10, score))
            for trial, score in zip(tried[1:], scores, strict=True)
        ]
        return OptunaPlanner().plan(make_context(history=(tried[0], *halted)))

    scores = [_score(trial.recipe) for trial in tried[1:]]
    assert len(plan_after(scores).proposals) == 3
    assert plan_after(scores) == plan_after(scores)
    assert plan_after(scores) != plan_after([1 - score for score in scores])


def test_no_candidate_costs_more_than_allowed(make_context: Contexts) -> None:
    context = make_context(n_candidates=8)
    for ratio in (1.2, 2.0, 4.0):
        for proposal in OptunaPlanner(max_cost_ratio=ratio).plan(context).proposals:
            recipe = apply_patch(context.incumbent, proposal.patch)
            assert relative_cost(recipe, context.incumbent, 400) <= ratio


def test_the_wall_clock_left_bounds_what_candidates_may_cost(make_context: Contexts) -> None:
    # The incumbent took 60 s, so 3 candidates in 200 s may take 1.1 times as long each.
    context = make_context(budget_left=BudgetLeft(wall_s=200.0))
    for proposal in OptunaPlanner().plan(context).proposals:
        recipe = apply_patch(context.incumbent, proposal.patch)
        assert relative_cost(recipe, context.incumbent, 400) <= 200 / 180
    with pytest.raises(PlannerError, match="every affordable setting"):
        OptunaPlanner().plan(make_context(budget_left=BudgetLeft(wall_s=1.0)))


def test_the_cost_of_a_recipe_follows_rows_and_rank() -> None:
    base = TrainRecipe("b", "d", "o", epochs=1.0)
    assert relative_cost(base, base, 400) == 1
    assert relative_cost(base.replace(epochs=3.0), base, 400) == pytest.approx(3)
    assert relative_cost(base.replace(epochs=3.0), base, 0) == pytest.approx(3)
    assert relative_cost(base.replace(global_batch_size=8, micro_batch_size=2), base, 400) == pytest.approx(1)
    counted = base.replace(epochs=None, max_steps=100)
    assert relative_cost(counted.replace(global_batch_size=32), counted, 400) == pytest.approx(2)
    assert relative_cost(base.replace(lora_rank=128), base, 400) > 1.1


def test_proposals_stay_inside_a_narrowed_space_until_it_is_exhausted(make_context: Contexts) -> None:
    space = PatchSpace.from_mapping(
        {
            **dict.fromkeys(PatchSpace.from_mapping({}).ranges, False),
            "learning_rate": {"choices": [1e-4, 5e-4, 1e-3]},
            "lora_dropout": {"choices": [0.0, 0.05]},
        }
    )
    history = list(make_context().history)
    seen = []
    for expected in (3, 2):
        plan = OptunaPlanner().plan(make_context(history=tuple(history), patch_space=space))
        assert len(plan.proposals) == expected
        for proposal in plan.proposals:
            recipe = apply_patch(make_context().incumbent, proposal.patch, space=space)
            seen.append((recipe.learning_rate, recipe.lora_dropout))
            history.append(TrialSummary(f"t{len(history)}", recipe, 0.2, "discard"))
    assert sorted(seen) == [(1e-4, 0.0), (5e-4, 0.0), (5e-4, 0.05), (1e-3, 0.0), (1e-3, 0.05)]
    assert "holds no more" in plan.notes
    with pytest.raises(PlannerError, match="every affordable setting"):
        OptunaPlanner().plan(make_context(history=tuple(history), patch_space=space))


def test_a_recipe_that_counts_steps_is_searched_by_steps(make_context: Contexts) -> None:
    start = make_context().incumbent.replace(epochs=None, max_steps=100)
    history = [TrialSummary("t0", start, 0.3, "baseline")]
    moved = set()
    for _ in range(8):
        plan = OptunaPlanner().plan(make_context(incumbent=start, history=tuple(history)))
        for proposal in plan.proposals:
            recipe = apply_patch(start, proposal.patch)
            assert recipe.epochs is None
            moved.add(recipe.max_steps)
            history.append(TrialSummary(f"t{len(history)}", recipe, 0.3, "discard"))
    assert len(moved) > 1


def test_odd_incumbents_and_trials_of_another_base_do_no_harm(make_context: Contexts) -> None:
    odd = make_context().incumbent.replace(
        learning_rate=9.37e-4, lora_rank=24, lora_alpha=7, lora_target_modules=("v_proj", "q_proj"),
        global_batch_size=24, epochs=7.3, lora_dropout=0.33, lr_schedule="linear",
    )  # fmt: skip
    other = TrialSummary("o", odd.replace(base_model="/models/other", epochs=2.0), 0.99, "keep")
    plan = OptunaPlanner().plan(make_context(incumbent=odd, history=(other,)))
    assert "scored so far: 1, best 0.300" in plan.hypothesis
    assert len(plan.proposals) == 3


@pytest.mark.parametrize("ratio", [0, -1, float("nan")])
def test_a_cost_ratio_that_allows_nothing_is_refused(ratio: float) -> None:
    with pytest.raises(PlannerError, match="max_cost_ratio"):
        OptunaPlanner(max_cost_ratio=ratio)


def test_optuna_loads_only_with_its_planner_and_stays_silent() -> None:
    code = (
        "import sys, agent.plan, agent.planners, agent.planners.fixed; assert 'optuna' not in sys.modules; "
        "from agent.plan import PlanContext; from agent.planners import OptunaPlanner; "
        "from tools.recipe import TrainRecipe; "
        "recipe = TrainRecipe('b', 'd', 'o', epochs=1.0); "
        "OptunaPlanner().plan(PlanContext(recipe, 0.1, 6, n_train_rows=10)); "
        "import optuna; assert optuna.logging.get_verbosity() == optuna.logging.INFO"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
