"""Refusals: told from answers as fieldkit tells them, and where it errs, better."""

from __future__ import annotations

import pytest

from tools.evaluation import REFUSAL_PATTERNS, is_refusal


@pytest.mark.parametrize(
    "text",
    [
        "The context does not contain the answer.",
        "The provided context doesn’t mention it",
        "I do not know.",
        "I don’t know that",
        "I do not have that",
        "It is not specified.",
        "It's not directly stated",
        "I can't answer that.",
        "I cannot provide this",
        "I am not able to determine it",
        "I’m unable to say",
        "There is no information on it",
        "no specific information",
        "UNCLEAR",
        "insufficient data",
        "It cannot be determined",
        "",
        "  \n",
        None,
    ],
)
def test_a_refusal(text: str | None) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Paris",
        "128 GB",
        '{"cmd": "land"}',
        "The company has not disclosed it",
        # Fieldkit takes this for a refusal.
        "I am able to answer that: it is Paris",
        "Nuclear power",
    ],
)
def test_an_answer(text: str) -> None:
    assert not is_refusal(text)


def test_the_patterns_do_not_hang_on_long_text() -> None:
    assert not is_refusal("I " * 200_000 + "context " * 100_000)
    assert all(pattern.search("") is None for pattern in REFUSAL_PATTERNS)
