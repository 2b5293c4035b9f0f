"""The planned bakeoff: a file of patches, checked when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.plan import PlanContext, TrialSummary
from agent.planners import FixedPlanner
from tools.errors import PlannerError
from tools.patch import apply_patch
from tools.patch_space import PatchSpace

Contexts = Callable[..., PlanContext]

PLAN = """\
- learning_rate: 1e-3
- patch: {lora_rank: 16, lora_alpha: 32}
  hypothesis: More capacity helps.
  expected_gain: 0.05
- patch: {epochs: 3}
"""


def _file(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_patches_come_in_the_order_of_the_file_with_their_words(
    tmp_path: Path, make_context: Contexts
) -> None:
    plan = FixedPlanner(_file(tmp_path, PLAN)).plan(make_context(n_candidates=2))
    assert [proposal.patch.values() for proposal in plan.proposals] == [
        {"learning_rate": 1e-3},
        {"lora_rank": 16, "lora_alpha": 32},
    ]
    assert plan.proposals[0].hypothesis == (
        "To see whether it helps to raise learning_rate from 0.0001 to 0.001 (10x)."
    )
    assert (plan.proposals[1].hypothesis, plan.proposals[1].expected_gain) == ("More capacity helps.", 0.05)


def test_a_plan_goes_on_and_then_says_that_it_is_exhausted(tmp_path: Path, make_context: Contexts) -> None:
    planner = FixedPlanner(_file(tmp_path, PLAN))
    history = list(make_context().history)
    for expected in (2, 1):
        plan = planner.plan(make_context(n_candidates=2, history=tuple(history)))
        assert len(plan.proposals) == expected
        for proposal in plan.proposals:
            recipe = apply_patch(make_context().incumbent, proposal.patch)
            history.append(TrialSummary(f"t{len(history)}", recipe, 0.2, "discard"))
    with pytest.raises(PlannerError, match="is exhausted: of its 3 patches 3 were tried"):
        planner.plan(make_context(history=tuple(history)))


def test_a_patch_that_does_not_apply_is_named_and_passed_over(tmp_path: Path, make_context: Contexts) -> None:
    planner = FixedPlanner(_file(tmp_path, "- global_batch_size: 12\n" + PLAN))
    plan = planner.plan(make_context())
    assert len(plan.proposals) == 3
    assert "entry 1: " in plan.notes
    assert "multiple of micro_batch_size" in plan.notes
    space = PatchSpace.from_mapping(dict.fromkeys(("learning_rate", "lora_rank", "epochs"), False))
    with pytest.raises(PlannerError, match=r"0 were tried or are in use, 4 do not apply \(entry 1:"):
        planner.plan(make_context(patch_space=space))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "non-empty list"),
        ("[]", "non-empty list"),
        ("learning_rate: 1", "non-empty list"),
        ("- [", "cannot be read as YAML"),
        ("- learning_rate: 1\n- seed: 3\n", r"entry 1: .*learning_rate.*; entry 2: .*'seed'"),
        ("- patch: {lora_rank: 16}\n  run: rm\n", "entry 1: run"),
        ("- patch: {lora_rank: 16}\n  expected_gain: 7\n", "entry 1: expected_gain"),
        ("- patch: {}\n", "entry 1: .*names no field"),
        ("- lora_rank: 8\n  lora_rank: 16\n", "given twice"),
        ("- !!python/object/apply:os.system ['true']\n", "cannot be read as YAML"),
    ],
)
def test_a_malformed_plan_is_refused_when_it_is_loaded(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PlannerError, match=said):
        FixedPlanner(_file(tmp_path, text))


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlannerError, match="no plan at"):
        FixedPlanner(tmp_path / "none.yaml")
    with pytest.raises(PlannerError, match="cannot be read"):
        FixedPlanner(tmp_path)
