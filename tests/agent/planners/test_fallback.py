"""The fallback planner, with a real server that is out and the real optuna planner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.plan import BudgetLeft, Plan, PlanContext
from agent.planners import ClaudePlanner, FallbackPlanner, OptunaPlanner
from agent.planners.messages_client import MessagesServer
from agent.planners.registry import open_planner
from tests.agent.planners.messages_api import MessagesApi, refuse, serve_messages, submit
from tools.errors import PlannerError
from tools.task import BakeoffSettings

Contexts = Callable[..., PlanContext]


def pair(api: MessagesApi) -> FallbackPlanner:
    server = MessagesServer(api.url, timeout_s=5, max_retries=1)
    return FallbackPlanner(ClaudePlanner("m", server=server), OptunaPlanner(seed=3))


def test_the_primary_plans_while_its_server_answers(make_context: Contexts) -> None:
    with serve_messages(submit({"learning_rate": 5e-4})) as api:
        plan = pair(api).plan(make_context())
    assert plan.planner == "claude/m"


def test_an_overloaded_server_is_stood_in_for_and_the_plan_says_so(make_context: Contexts) -> None:
    with serve_messages(refuse(529, retry_after="0.01"), repeats=True) as api:
        plan = pair(api).plan(make_context())
    assert len(api.requests) == 2
    assert plan.planner == "optuna (for claude/m)"
    assert plan.notes.startswith("claude/m could not plan, optuna stepped in: m: ")
    assert plan.proposals == OptunaPlanner(seed=3).plan(make_context()).proposals
    assert Plan.from_mapping(plan.to_dict()) == plan


def test_a_plan_that_is_malformed_twice_is_stood_in_for_and_what_was_refused_is_kept(
    make_context: Contexts,
) -> None:
    bad = submit({"seed": 1}, target_score=0)
    with serve_messages(bad, bad) as api:
        plan = pair(api).plan(make_context())
    assert plan.planner == "optuna (for claude/m)"
    assert "'target_score' may not be set by a plan" in plan.notes


def test_the_primary_is_asked_again_after_an_outage(make_context: Contexts) -> None:
    with serve_messages(refuse(400), submit({"learning_rate": 5e-4})) as api:
        both = pair(api)
        assert [both.plan(make_context()).planner for _ in range(2)] == ["optuna (for claude/m)", "claude/m"]


def test_an_empty_budget_is_no_outage(make_context: Contexts) -> None:
    with serve_messages() as api, pytest.raises(PlannerError, match="0 trials left"):
        pair(api).plan(make_context(budget_left=BudgetLeft(trials=0)))
    assert api.requests == []


def test_claude_is_opened_with_the_settings_of_the_task() -> None:
    settings = BakeoffSettings(
        planner="claude", planner_model="qwen", planner_base_url="http://127.0.0.1:8000", planner_turns=5
    )
    opened = open_planner("claude", seed=4, settings=settings)
    assert isinstance(opened, FallbackPlanner)
    assert isinstance(opened.primary, ClaudePlanner)
    assert (opened.primary.model, opened.primary.turns) == ("qwen", 5)
    assert opened.primary.server.base_url == "http://127.0.0.1:8000"
    assert opened.name == "claude/qwen, else optuna"


def test_claude_without_a_model_and_unknown_planners_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlannerError, match="planner_model"):
        open_planner("claude", settings=BakeoffSettings(planner="claude"))
    with pytest.raises(PlannerError, match="'optuna', 'claude', 'fixed'"):
        open_planner("random")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "https://key@host", "host:80", "http://a b"])
def test_an_address_that_is_none_is_refused_in_task_yaml(url: str) -> None:
    with pytest.raises(ValueError, match="planner_base_url"):
        BakeoffSettings(planner="claude", planner_model="m", planner_base_url=url)
