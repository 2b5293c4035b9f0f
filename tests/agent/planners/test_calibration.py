"""Expected against realised gains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from agent.plan import PlanContext, TrialSummary
from agent.planners.calibration import calibrate, describe_calibration
from agent.planners.prompt import build_prompt
from tests.agent.planners.conftest import START


def tried(name: str, expected: float | None, gain: float | None, planner: str = "claude/m") -> TrialSummary:
    told: dict[str, Any] = {"gain": gain, "expected_gain": expected, "planner": planner}
    return TrialSummary(name, START, 0.3, "discard", **told)


def test_each_planner_is_held_to_what_it_expected() -> None:
    found = calibrate(
        [
            tried("i1-c1-s17", 0.10, 0.02),
            tried("i1-c2-s17", 0.06, -0.02),
            tried("i2-c1-s17", 0.1, 0.3, "other"),
        ]
    )
    claude, other = found
    assert (claude.planner, claude.n, claude.n_right_sign) == ("claude/m", 2, 1)
    assert claude.mean_expected == pytest.approx(0.08)
    assert claude.mean_realised == pytest.approx(0.0)
    assert claude.mean_error == pytest.approx(0.08)
    assert other.mean_error == pytest.approx(-0.2)
    assert other.mean_absolute_error == pytest.approx(0.2)


def test_the_seeds_of_a_candidate_count_once() -> None:
    (found,) = calibrate([tried("i1-c1-s17", 0.1, 0.02), tried("i1-c1-s29", 0.1, 0.02)])
    assert found.n == 1


def test_what_was_not_expected_or_not_measured_does_not_count() -> None:
    assert calibrate([tried("a", None, 0.1), tried("b", 0.1, None), tried("c", math.nan, 0.1)]) == ()
    assert describe_calibration(()) == "no expectation was measured yet"


def test_a_planner_is_shown_its_calibration(make_context: Callable[..., PlanContext]) -> None:
    context = make_context(history=(tried("i1-c1-s17", 0.1, 0.02),))
    prompt = build_prompt(context, n_wanted=3, turns=8, max_cost_ratio=4)
    assert "claude/m: over 1 candidates expected +0.100 and got +0.020" in prompt.state
