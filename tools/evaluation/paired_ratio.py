"""The gain in a ratio of sums, such as passed over asked, paired by task.

A rate over tasks of different sizes is a ratio of two sums. Its spread over tasks is that of
its linear part, (x_i - R y_i) / mean(y), which for tasks of one size is x_i - R: the paired
interval of `tools.comparison` is the special case, and the two pseudo-tasks that keep it honest
where all tasks agree are used here too.

Source: Cochran 1977, Sampling Techniques, chapter 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tools.student_t import t_quantile

__all__ = ["Part", "RatioGain", "ratio_gain"]

_ROUNDING: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Part:
    """One task's part in both ratios."""

    base: float
    base_of: float
    candidate: float
    candidate_of: float


@dataclass(frozen=True, slots=True)
class RatioGain:
    """The candidate's ratio less the base's; None where a side has nothing to divide by."""

    gain: float | None
    interval: tuple[float, float] | None
    """None for fewer than two tasks, and for means whose gain is the same on all tasks: a spread
    of nothing would claim certainty."""


def ratio_gain(parts: Sequence[Part], *, level: float, is_rate: bool) -> RatioGain:
    """Return the gain over tasks, with its two-sided interval.

    Args:
        is_rate: The ratios lie in [0, 1]; two pseudo-tasks, one won and one lost outright, join
            in, and the interval stays in [-1, 1].
    """
    used = [part for part in parts if part.base_of or part.candidate_of]
    base_of = math.fsum(part.base_of for part in used)
    candidate_of = math.fsum(part.candidate_of for part in used)
    if not base_of or not candidate_of:
        return RatioGain(None, None)
    base = math.fsum(part.base for part in used) / base_of
    candidate = math.fsum(part.candidate for part in used) / candidate_of
    gain = candidate - base
    n = len(used)
    if n < 2:
        return RatioGain(gain, None)
    values = [
        gain
        + (part.candidate - candidate * part.candidate_of) * n / candidate_of
        - (part.base - base * part.base_of) * n / base_of
        for part in used
    ]
    if is_rate:
        values += [1.0, -1.0]
    centre = math.fsum(values) / len(values)
    variance = math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)
    if math.sqrt(variance) <= _ROUNDING * max(abs(base), abs(candidate)):
        return RatioGain(gain, None)
    reach = t_quantile(level, len(values) - 1) * math.sqrt(variance / len(values))
    low, high = min(centre - reach, gain), max(centre + reach, gain)
    return RatioGain(gain, (max(-1.0, low), min(1.0, high)) if is_rate else (low, high))
