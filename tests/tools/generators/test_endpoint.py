"""A generator behind an endpoint, against a server on this machine."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.chat_server import Answered, serve_chat
from tools.errors import EvaluationError
from tools.evaluation.chat_clients import OpenAICompatibleClient
from tools.generators.endpoint import EndpointGenerator
from tools.generators.generator import Generator
from tools.probe.generator import Sampling
from tools.probe.questions import ProbeQuestion
from tools.probe.reasoning import ReasoningProbe
from tools.rows import Message


def ask(*texts: str) -> list[tuple[Message, ...]]:
    return [(Message("system", "Be brief."), Message("user", text)) for text in texts]


def question(request: dict[str, Any]) -> str:
    return str(request["messages"][-1]["content"])


def generator(url: str, *, concurrency: int = 4, sampling: Sampling | None = None, **client: Any) -> Any:
    made = OpenAICompatibleClient(url, "m", **{"max_attempts": 2, "sleep": lambda _: None, **client})
    return EndpointGenerator(made, sampling or Sampling(32, temperature=0.0, seed=5), concurrency)


def test_every_conversation_is_answered_in_its_order_with_what_it_took():
    with serve_chat(lambda request: Answered(f"to {question(request)}")) as server:
        found = generator(server.url).generate(ask("a", "b", "c"))
    assert [one.text for one in found] == ["to a", "to b", "to c"]
    assert {(one.input_tokens, one.output_tokens, one.is_complete, one.error) for one in found} == {
        (3, 2, True, None)
    }
    first = server.requests[0]
    assert (first["model"], first["max_tokens"], first["temperature"], first["seed"]) == ("m", 32, 0.0, 5)
    assert first["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "top_p" not in first


def test_a_drawn_answer_says_how_it_is_drawn():
    with serve_chat(lambda _: Answered("x")) as server:
        generator(server.url, sampling=Sampling(8, 0.7, 3, 0.9)).generate(ask("a"))
    assert [server.requests[0][key] for key in ("temperature", "seed", "top_p")] == [0.7, 3, 0.9]


def test_no_more_requests_are_in_flight_than_allowed_and_as_many_as_that():
    gate = threading.Barrier(3)

    def answer(_: dict[str, Any]) -> Answered:
        gate.wait(60)
        return Answered("x")

    with serve_chat(answer) as server:
        generator(server.url, concurrency=3).generate(ask(*"abcdef"))
    assert server.most_at_once == 3


def test_a_row_that_fails_costs_no_other_and_says_why():
    with serve_chat(lambda r: Answered(status=400) if question(r) == "b" else Answered("x")) as server:
        found = generator(server.url).generate(ask("a", "b", "c"))
    assert [one.text for one in found] == ["x", None, "x"]
    assert found[1].error is not None
    assert "HTTP 400" in found[1].error
    assert len(server.requests) == 3


def test_a_busy_server_is_asked_again_when_it_says():
    waits: list[float] = []
    busy = {"b": 1}

    def answer(request: dict[str, Any]) -> Answered:
        if busy.get(question(request), 0):
            busy[question(request)] -= 1
            return Answered(status=429, headers={"Retry-After": "7"})
        return Answered("x")

    with serve_chat(answer) as server:
        found = generator(server.url, sleep=waits.append).generate(ask("a", "b"))
    assert [one.text for one in found] == ["x", "x"]
    assert waits == [7.0]


def test_a_silent_endpoint_is_given_up_before_every_row_has_waited_for_it():
    with serve_chat(lambda _: Answered(status=503)) as server:
        found = generator(server.url, concurrency=2).generate(ask(*map(str, range(100))))
    assert len(found) == 100
    assert all(one.text is None for one in found)
    assert found[-1].error is not None
    assert found[-1].error.startswith("not asked, the endpoint is silent")
    assert len(server.requests) < 100


def test_a_server_that_comes_back_is_not_given_up():
    counts = {"n": 0}

    def answer(_: dict[str, Any]) -> Answered:
        counts["n"] += 1
        return Answered(status=503) if counts["n"] % 4 in (1, 2) else Answered("x")

    with serve_chat(answer) as server:
        found = generator(server.url, concurrency=1, max_attempts=1).generate(ask(*map(str, range(80))))
    assert [one.text is None for one in found] == [True, True, False, False] * 20


def test_a_row_cut_off_by_its_limit_is_told_from_a_whole_one():
    with serve_chat(lambda _: Answered("x", finish="length", usage=False)) as server:
        (found,) = generator(server.url).generate(ask("a"))
    assert (found.is_complete, found.output_tokens) == (False, None)


def test_the_key_is_read_from_the_variable_that_is_named_and_shown_nowhere(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret-0123")
    with serve_chat(lambda _: Answered(status=401)) as server:
        asked = generator(server.url, api_key_env="MY_KEY")
        (found,) = asked.generate(ask("a"))
    assert server.headers[0]["authorization"] == "Bearer sk-very-secret-0123"
    assert "sk-very-secret" not in f"{asked!r} {asked.name} {found.error}"


def test_a_probe_reads_chains_that_the_server_tells_apart():
    with serve_chat(lambda _: Answered("42", reasoning="six by seven")) as server:
        asked = generator(server.url, sampling=Sampling(1024, 0.0))
        probe = ReasoningProbe(
            [ProbeQuestion("q1", "maths", "6 x 7?"), ProbeQuestion("q2", "maths", "7 x 6?")]
        )
        report = probe.run("m", generator=asked, temperature=0.0)
    assert [row.response for row in report.rows] == ["<think>\nsix by seven\n</think>\n42"] * 2
    assert all(row.has_think for row in report.rows)


def test_it_is_a_generator_and_its_concurrency_is_bounded():
    asked = generator("http://localhost:1/v1")
    assert isinstance(asked, Generator)
    with pytest.raises(EvaluationError, match="from 1 to 256"):
        generator("http://localhost:1/v1", concurrency=0)
