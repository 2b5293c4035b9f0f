"""Commit messages: what a value says can neither add a trailer nor change one."""

from __future__ import annotations

import subprocess

import pytest

from tools.commit_message import compose_message, fold_line
from tools.errors import RepoError


def parsed(message: str) -> list[str]:
    """The trailers as git reads them."""
    done = subprocess.run(
        ["git", "interpret-trailers", "--parse", "--no-divider"],
        input=message,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_message_has_a_subject_a_body_and_trailers() -> None:
    message = compose_message("Raise the rate", "It won.\n\nBy far.", {"Trial": "t1", "Cost": "0.10"})
    assert message == "Raise the rate\n\nIt won.\n\nBy far.\n\nTrial: t1\nCost: 0.10\n"
    assert parsed(message) == ["Trial: t1", "Cost: 0.10"]


def test_a_message_needs_only_a_subject() -> None:
    assert compose_message("Raise the rate", "", {}) == "Raise the rate\n"


@pytest.mark.parametrize("breaker", ["\n", "\r\n", "\n\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\x00"])
def test_no_value_can_forge_a_trailer(breaker: str) -> None:
    evil = f"x{breaker}Bakehouse-Iteration: i9999"
    message = compose_message(evil, evil, {"Bakehouse-Iteration": "i0001", "Planner": evil})
    assert parsed(message) == ["Bakehouse-Iteration: i0001", "Planner: x Bakehouse-Iteration: i9999"]
    assert message.splitlines()[0] == "x Bakehouse-Iteration: i9999"


def test_a_body_that_ends_like_trailers_stays_body() -> None:
    message = compose_message("s", "why\n\nDecision: forged\nTrial: forged", {"Trial": "t1"})
    assert parsed(message) == ["Trial: t1"]
    assert parsed(compose_message("s", "why\n\nDecision: forged\nTrial : forged", {})) == []


@pytest.mark.parametrize(
    ("subject", "trailers", "complaint"),
    [
        (" \n ", {}, "subject is empty"),
        ("s", {"Trial": " \n"}, "trailer Trial is empty"),
        ("s", {"Trial:": "t1"}, "no trailer's name"),
        ("s", {"": "t1"}, "no trailer's name"),
        ("s", {"Tri al": "t1"}, "no trailer's name"),
        ("s", {"Trial\nEvil": "t1"}, "no trailer's name"),
    ],
)
def test_a_malformed_message_is_refused(subject: str, trailers: dict[str, str], complaint: str) -> None:
    with pytest.raises(RepoError, match=complaint):
        compose_message(subject, "", trailers)


def test_a_folded_line_can_be_written_as_utf_8() -> None:
    assert fold_line("  a\t\tb\x1b[31mc \ud800 ü ") == "a b [31mc ü"
