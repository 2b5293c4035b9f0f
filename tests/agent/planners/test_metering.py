"""Metering: what a planner's requests are debited, over the real SDK and a scripted server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.budget.amounts import Amounts
from agent.budget.ledger import Ledger
from agent.plan import BudgetLeft, PlanContext
from agent.planners.claude_planner import ClaudePlanner
from agent.planners.fallback import FallbackPlanner
from agent.planners.messages_client import MessagesServer
from agent.planners.metering import worst_prompt_tokens
from agent.planners.optuna_planner import OptunaPlanner
from agent.planners.planner import costs_of
from tests.agent.planners.messages_api import (
    USAGE,
    MessagesApi,
    Reply,
    call,
    refuse,
    serve_messages,
    submit,
)
from tools.errors import BudgetError
from tools.journal import Journal
from tools.task import BudgetCaps, PlannerPrices

PRICES = PlannerPrices(input=10.0, output=50.0, cache_read=1.0, cache_write=12.5)
A_REPLY = sum(USAGE.values())
"""Tokens of a scripted reply."""


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)


@pytest.fixture
def make_ledger(tmp_path: Path) -> Callable[..., Ledger]:
    def clock() -> str:
        return "2026-11-20T04:49:00Z"

    def make(**caps: float) -> Ledger:
        journal = Journal(tmp_path / "journal.jsonl", clock=clock)
        journal.begin_run("r0001")
        ledger = Ledger(journal, BudgetCaps.model_validate(caps), count_gpus=lambda: 0, clock=clock)
        ledger.enter("r0001")
        return ledger

    return make


def planner(api: MessagesApi, prices: PlannerPrices | None = PRICES) -> ClaudePlanner:
    return ClaudePlanner("scripted", server=MessagesServer(base_url=api.url), max_tokens=1000, prices=prices)


def metered(ledger: Ledger, make_context: Callable[..., PlanContext]) -> PlanContext:
    return make_context(meter=ledger.requests("plan", "i0001"), budget_left=ledger.left())


def test_every_request_is_debited_at_its_worst_and_settled_at_what_the_server_says(
    make_ledger: Callable[..., Ledger], make_context: Callable[..., PlanContext]
) -> None:
    ledger = make_ledger(tokens=10**6, dollars=100, turns=20)
    with serve_messages(call(("read_decisions", {})), submit({"learning_rate": 1e-3})) as api:
        plan = planner(api).plan(metered(ledger, make_context))
        assert len(api.requests) == 2
    spent = ledger.account.spent
    assert (spent.turns, spent.tokens) == (2, 2 * A_REPLY)
    assert plan.usage is not None
    assert spent.dollars == pytest.approx(plan.usage.priced(PRICES).dollars)
    worst = [event.data["worst"] for event in ledger._journal.events() if event.event == "budget_reserved"]
    assert all(one["tokens"] > 1000 + 2000 for one in worst)
    # What is debited is more than such a prompt can come to.
    assert worst[1]["tokens"] > worst[0]["tokens"]


def test_the_repeats_of_the_sdk_are_turns_and_cost_no_tokens(
    make_ledger: Callable[..., Ledger], make_context: Callable[..., PlanContext]
) -> None:
    ledger = make_ledger(turns=20)
    busy = refuse(529, retry_after="0.01")
    with serve_messages(busy, busy, submit({"learning_rate": 1e-3})) as api:
        planner(api).plan(metered(ledger, make_context))
        assert len(api.requests) == 3
    assert (ledger.account.spent.turns, ledger.account.spent.tokens) == (3, A_REPLY)


def test_a_repeat_that_does_not_fit_is_not_sent(
    make_ledger: Callable[..., Ledger], make_context: Callable[..., PlanContext]
) -> None:
    ledger = make_ledger(turns=2)
    with serve_messages(refuse(529, retry_after="0.01"), repeats=True) as api:
        with pytest.raises(BudgetError, match="turns"):
            planner(api).plan(metered(ledger, make_context))
        assert len(api.requests) == 2


@pytest.mark.parametrize("caps", [{"tokens": 3000}, {"dollars": 0.05}])
def test_a_request_that_could_pass_a_cap_is_not_sent_and_nobody_steps_in(
    make_ledger: Callable[..., Ledger], make_context: Callable[..., PlanContext], caps: dict[str, float]
) -> None:
    ledger = make_ledger(**caps)
    with serve_messages(submit({"learning_rate": 1e-3})) as api:
        with pytest.raises(BudgetError):
            FallbackPlanner(planner(api), OptunaPlanner()).plan(metered(ledger, make_context))
        assert api.requests == []
    assert ledger.account.spent == Amounts()


def test_a_reply_that_breaks_off_keeps_its_whole_worst_case(
    make_ledger: Callable[..., Ledger], make_context: Callable[..., PlanContext]
) -> None:
    ledger = make_ledger(tokens=10**6)
    broken = Reply(submit({"learning_rate": 1e-3}).blocks, "tool_use", cut_after=3)
    with serve_messages(broken) as api, ledger.spending("plan", "i0001", Amounts()):
        FallbackPlanner(planner(api), OptunaPlanner()).plan(metered(ledger, make_context))
    assert ledger.account.open == {}
    assert ledger.account.spent.tokens > 3000


def test_the_last_turn_is_spent_on_a_plan_and_not_on_a_look_up(
    make_ledger: Callable[..., Ledger], make_context: Callable[..., PlanContext]
) -> None:
    ledger = make_ledger(turns=1)
    with serve_messages(submit({"learning_rate": 1e-3})) as api:
        planner(api).plan(metered(ledger, make_context))
        assert api.requests[0]["tool_choice"] == {"type": "tool", "name": "submit_plan"}
    assert ledger.left() == BudgetLeft(turns=0)


def test_without_prices_tokens_are_counted_and_dollars_are_unknown(
    make_ledger: Callable[..., Ledger], make_context: Callable[..., PlanContext]
) -> None:
    ledger = make_ledger(tokens=10**6)
    with serve_messages(submit({"learning_rate": 1e-3})) as api:
        planner(api, None).plan(metered(ledger, make_context))
    assert ledger.account.spent.dollars is None


def test_a_fallback_costs_what_its_first_planner_costs() -> None:
    claude = ClaudePlanner("scripted", server=MessagesServer(base_url="http://127.0.0.1:9"), prices=PRICES)
    both = costs_of(FallbackPlanner(claude, OptunaPlanner()))
    assert both is not None
    assert (both.prices, both.time_limit_s) == (PRICES, claude.time_limit_s)
    assert costs_of(OptunaPlanner()) is None
    assert costs_of(FallbackPlanner(OptunaPlanner(), OptunaPlanner())) is None


def test_a_prompts_worst_case_is_above_what_its_characters_come_to() -> None:
    # No tokenizer at hand makes more than one token of two bytes of such text.
    assert worst_prompt_tokens(b"x" * 10_000) >= 5_000
