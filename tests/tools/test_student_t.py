"""Student's t against the printed tables and against its closed forms."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from tools.student_t import t_quantile, two_sided_p


@pytest.mark.parametrize(
    ("level", "degrees_of_freedom", "quantile"),
    [
        (0.90, 1, 6.313752),
        (0.95, 1, 12.706205),
        (0.95, 2, 4.302653),
        (0.98, 4, 3.746947),
        (0.99, 5, 4.032143),
        (0.95, 10, 2.228139),
        (0.80, 20, 1.325341),
        (0.999, 30, 3.645959),
        (0.95, 119, 1.980100),
        (0.99, 120, 2.617421),
        (0.95, 1e9, 1.959964),
    ],
)
def test_the_quantile_is_that_of_the_tables(level: float, degrees_of_freedom: float, quantile: float) -> None:
    assert t_quantile(level, degrees_of_freedom) == pytest.approx(quantile, abs=1e-6)


@given(st.floats(1e-6, 1e6))
def test_the_tail_is_that_of_the_closed_forms(statistic: float) -> None:
    cauchy = 2 * math.atan(1 / statistic) / math.pi
    assert two_sided_p(statistic, 1) == pytest.approx(cauchy, rel=1e-9)
    root = math.sqrt(2 + statistic**2)
    assert two_sided_p(statistic, 2) == pytest.approx(2 / (root * (root + statistic)), rel=1e-9)


@given(st.floats(0.01, 0.9999), st.floats(0.5, 1e7))
def test_quantile_and_tail_undo_each_other(level: float, degrees_of_freedom: float) -> None:
    assert two_sided_p(t_quantile(level, degrees_of_freedom), degrees_of_freedom) == pytest.approx(
        1 - level, rel=1e-7
    )


@given(st.floats(0.01, 0.999), st.floats(0.0005, 0.0008), st.floats(1, 1e5))
def test_a_higher_level_reaches_further_and_more_degrees_of_freedom_less_far(
    level: float, more: float, degrees_of_freedom: float
) -> None:
    assert t_quantile(level + more, degrees_of_freedom) > t_quantile(level, degrees_of_freedom)
    assert t_quantile(level, degrees_of_freedom * 1.5) < t_quantile(level, degrees_of_freedom)


def test_the_ends_of_the_scale_hold() -> None:
    assert two_sided_p(0.0, 3) == 1.0
    assert two_sided_p(1e200, 3) == 0.0
    assert two_sided_p(-2.0, 7.5) == two_sided_p(2.0, 7.5)
    assert 0.0 < two_sided_p(40.0, 119) < 1e-60


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, math.nan])
def test_a_level_outside_the_scale_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="above 0 and below 1"):
        t_quantile(level, 3)


@pytest.mark.parametrize("degrees_of_freedom", [0.0, -1.0, math.nan])
def test_degrees_of_freedom_must_be_positive(degrees_of_freedom: float) -> None:
    with pytest.raises(ValueError, match="allowed: above 0"):
        two_sided_p(1.0, degrees_of_freedom)
    with pytest.raises(ValueError, match="allowed: above 0"):
        t_quantile(0.95, degrees_of_freedom)
