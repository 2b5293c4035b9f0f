"""Plans as bytes: what the journal reads back and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from agent.plan import Plan, Proposal
from tools.errors import PlannerError
from tools.patch import RecipePatch

GOOD: dict[str, Any] = {
    "planner": "fixed",
    "hypothesis": "It helps.",
    "proposals": [
        {"patch": {"lora_rank": 16, "lora_layers": None}, "hypothesis": "More.", "expected_gain": None}
    ],
}


def test_a_plan_survives_its_json() -> None:
    plan = Plan.from_mapping(GOOD)
    assert plan.proposals[0].patch == RecipePatch(lora_rank=16, lora_layers=None)
    assert Plan.from_mapping(plan.to_dict()) == plan
    assert plan.to_dict()["proposals"][0]["patch"] == {"lora_rank": 16, "lora_layers": None}
    assert hash(plan) == hash(Plan.model_validate_json(plan.model_dump_json()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"proposals": []}, "proposals"),
        ({"proposals": [{"patch": {"seed": 1}, "hypothesis": "x"}]}, r"proposals.0.patch: 'seed'"),
        ({"proposals": [{"patch": {"lora_rank": 16}, "hypothesis": ""}]}, "proposals.0.hypothesis"),
        ({"expected_gain": float("nan")}, "expected_gain"),
        ({"expected_gain": 2}, "expected_gain"),
        ({"task": {"level": 0.5}}, "task"),
        ({"hypothesis": "x" * 3000}, "hypothesis"),
        ({"planner": None}, "planner"),
    ],
)
def test_a_plan_that_is_malformed_is_refused_by_part(change: dict[str, Any], said: str) -> None:
    with pytest.raises(PlannerError, match=said):
        Plan.from_mapping({**GOOD, **change})


@pytest.mark.parametrize("data", [None, [], "plan", 3])
def test_what_is_no_plan_is_refused(data: Any) -> None:
    with pytest.raises(PlannerError):
        Plan.from_mapping(data)


def test_a_proposal_does_not_change() -> None:
    proposal = Proposal(patch=RecipePatch(lora_rank=4), hypothesis="Less.")
    with pytest.raises(ValueError, match="frozen"):
        proposal.hypothesis = "More."
