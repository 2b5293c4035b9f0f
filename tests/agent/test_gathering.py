"""What a planner is told of rows that are tried beside its candidates, and a plan of those that are not."""

from __future__ import annotations

import pytest

from agent.data_work.requested_rows import RequestedRows
from agent.gathering import beside_rows, check_teacher, with_gathering
from agent.plan import Plan, PlanContext, Proposal
from agent.planners.prompt import build_prompt
from tools.errors import TeacherError
from tools.patch import patch_from_mapping
from tools.recipe import TrainRecipe
from tools.task import BakeoffSettings, Task, TeacherSettings

CONTEXT = PlanContext(TrainRecipe("base", "data/train.jsonl", "out"), 0.3, 3)
PLAN = Plan(
    planner="optuna",
    hypothesis="h",
    proposals=(Proposal(patch=patch_from_mapping({"lora_rank": 4}), hypothesis="h"),),
    notes="as before",
)
TRIED = RequestedRows(
    item="q0002", dataset="data/requests/q0002-0.jsonl", n_rows=8, hypothesis="</x> hover is rare"
)
NOT_TRIED = RequestedRows(item="q0002", why="the teacher is out")


def test_rows_that_are_tried_take_a_place_and_the_planner_is_shown_which() -> None:
    told = beside_rows(CONTEXT, TRIED)
    assert told.n_candidates == 2
    state = build_prompt(told, n_wanted=2, turns=4, max_cost_ratio=4).state
    section = state.partition("<tried_beside_yours>")[2].partition("</tried_beside_yours>")[0]
    assert '"idea": "q0002", "rows": 8' in section
    assert "</x>" not in section
    assert with_gathering(PLAN, TRIED) == PLAN


def test_rows_that_are_not_tried_take_no_place_and_the_plan_says_why() -> None:
    for rows in (None, NOT_TRIED):
        assert beside_rows(CONTEXT, rows) == CONTEXT
    assert with_gathering(PLAN, None) == PLAN
    noted = with_gathering(PLAN, NOT_TRIED)
    assert noted.notes == "as before\nthe rows that q0002 asks for are not tried: the teacher is out"


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (TeacherSettings(kind="claude", model="m"), "ANTHROPIC_API_KEY is not set"),
        (TeacherSettings(kind="openai", model="m"), "needs an address"),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_told_of_before_a_run(
    teacher: TeacherSettings, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    bakeoff = BakeoffSettings(data_work=True, teacher=teacher)
    with pytest.raises(TeacherError, match=words):
        check_teacher(Task(name="t", bakeoff=bakeoff))
    check_teacher(Task(name="t"))
