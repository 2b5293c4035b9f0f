"""A teacher that a flywheel asks: debited before it is asked, and sent no key that a file asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.budget.amounts import Amounts
from agent.teachers.budgeted import BudgetedTeacher
from agent.teachers.registry import choice_of
from agent.teachers.teacher import ChatReply
from tools.errors import BudgetError, EndpointBusyError, TeacherError
from tools.task import BakeoffSettings, PlannerPrices, TeacherSettings

PRICES = PlannerPrices(input=2, output=10, cache_read=0.2, cache_write=2.5)


@dataclass
class Scripted:
    replies: list[ChatReply | Exception]
    name: str = "tiny"

    def ask(self, system: str, question: str, *, max_tokens: int) -> ChatReply:
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


@dataclass
class Book:
    """A meter that remembers."""

    most_turns: int = 9
    debits: list[Amounts] = field(default_factory=list)
    settled: dict[int, Amounts] = field(default_factory=dict)

    def reserve(self, worst: Amounts) -> int:
        if len(self.debits) >= self.most_turns:
            raise BudgetError("the cap of turns is reached")
        self.debits.append(worst)
        return len(self.debits)

    def settle(self, number: int, spent: Amounts) -> None:
        self.settled[number] = spent


def test_a_request_is_debited_at_its_worst_and_settled_by_its_reply() -> None:
    book = Book()
    teacher = BudgetedTeacher(Scripted([ChatReply("x", 1000, 100)]), book, PRICES)
    assert teacher.ask("s" * 600, "q" * 600, max_tokens=500).text == "x"
    assert (book.debits[0].turns, book.debits[0].tokens) == (1, 600 + 64 + 500)
    assert book.settled[1].tokens == 1100
    assert book.settled[1].dollars == pytest.approx((1000 * 2.5 + 100 * 10) / 1e6)


def test_what_brings_no_reply_or_no_count_stays_debited_and_a_cap_sends_nothing() -> None:
    book = Book(most_turns=2)
    scripted = Scripted([EndpointBusyError("busy"), ChatReply("x"), ChatReply("never")])
    teacher = BudgetedTeacher(scripted, book, None)
    with pytest.raises(EndpointBusyError):
        teacher.ask("s", "q", max_tokens=5)
    teacher.ask("s", "q", max_tokens=5)
    with pytest.raises(BudgetError):
        teacher.ask("s", "q", max_tokens=5)
    assert book.settled == {}
    assert len(scripted.replies) == 1
    assert book.debits[0].dollars is None


@pytest.mark.parametrize(
    ("settings", "environment", "key"),
    [
        ({"kind": "openai", "base_url": "http://evil.example/v1"}, {}, None),
        ({"kind": "openai", "base_url": "http://a/v1"}, {"OPENAI_BASE_URL": "http://b/v1"}, None),
        (
            {"kind": "openai", "base_url": "http://a/v1/"},
            {"OPENAI_BASE_URL": "http://a/v1"},
            "OPENAI_API_KEY",
        ),
    ],
)
def test_a_key_goes_where_the_environment_says_and_not_where_a_file_does(
    settings: dict[str, Any], environment: dict[str, str], key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert choice_of(TeacherSettings(model="m", **settings)).api_key_env == key


def test_claude_is_not_asked_at_an_address_that_stands_in_a_file_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)
    elsewhere = TeacherSettings(kind="claude", model="m", base_url="http://a.example")
    with pytest.raises(TeacherError, match="your key would be sent there"):
        choice_of(elsewhere)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://a.example/")
    assert choice_of(elsewhere).base_url == "http://a.example"
    assert choice_of(TeacherSettings(kind="claude", model="m")).base_url is None


@pytest.mark.parametrize("settings", [{"candidates": 3}, {"candidates": 1, "teacher": {"model": "m"}}])
def test_data_work_needs_a_model_and_a_place(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"bakeoff\.teacher\.model, and bakeoff\.candidates from 2"):
        BakeoffSettings(data_work=True, **settings)
