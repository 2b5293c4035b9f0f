"""Student's t distribution, for any positive number of degrees of freedom.

The standard library has the normal distribution only, and an import of scipy for two
functions would cost more than the whole of `tools`.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

__all__ = ["t_quantile", "two_sided_p"]

_TINY: Final = 1e-300
_PRECISION: Final = 1e-15
_STEP: Final = 1e-13


def two_sided_p(statistic: float, degrees_of_freedom: float) -> float:
    """Return the probability that |T| is at least |statistic|.

    Raises:
        ValueError: degrees_of_freedom is not above 0.
    """
    if not degrees_of_freedom > 0:
        raise ValueError(f"degrees_of_freedom is {degrees_of_freedom!r}; allowed: above 0")
    square = statistic * statistic
    if math.isinf(square):
        return 0.0
    # The two arguments are 1 - x of each other; each is computed without cancellation.
    total = degrees_of_freedom + square
    return _incomplete_beta(degrees_of_freedom / 2, 0.5, degrees_of_freedom / total, square / total)


def t_quantile(level: float, degrees_of_freedom: float) -> float:
    """Return the t with P(|T| <= t) = level: the multiplier of a two-sided interval.

    Raises:
        ValueError: level is outside (0, 1), or degrees_of_freedom is not above 0.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level!r}; allowed: above 0 and below 1")
    tail = 1.0 - level
    # The tail probability is convex in t and the normal's quantile lies below Student's, so
    # Newton's steps climb from there and cannot overshoot.
    quantile = -NormalDist().inv_cdf(tail / 2.0)
    while (over := two_sided_p(quantile, degrees_of_freedom) - tail) > 0.0:
        step = over / (2.0 * _density(quantile, degrees_of_freedom))
        if step <= _STEP * quantile:
            break
        quantile += step
    return quantile


def _density(statistic: float, degrees_of_freedom: float) -> float:
    half = degrees_of_freedom / 2
    log_front = math.lgamma(half + 0.5) - math.lgamma(half) - math.log(degrees_of_freedom * math.pi) / 2
    return math.exp(log_front - (half + 0.5) * math.log1p(statistic * statistic / degrees_of_freedom))


def _incomplete_beta(a: float, b: float, x: float, complement: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), with complement = 1 - x.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.5.8.
    """
    if x <= 0.0 or complement <= 0.0:
        return 0.0 if x <= 0.0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log(complement))
    # The fraction converges fast on this side of the mean only; the other is its mirror.
    if x < (a + 1.0) / (a + b + 2.0):
        return min(1.0, front * _beta_fraction(a, b, x) / a)
    return max(0.0, 1.0 - front * _beta_fraction(b, a, complement) / b)


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Evaluate the continued fraction of the incomplete beta function by Lentz's method."""
    c = 1.0
    d = 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + term * d)
            c = _away_from_zero(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < _PRECISION:
            return value
    raise ArithmeticError(f"the incomplete beta function did not converge at a={a}, b={b}, x={x}")


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
