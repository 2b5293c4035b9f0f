"""An axis: from values to places in a drawing, with ticks at round values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Axis", "fit_axis"]

_ROUND: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_LOG_FROM: Final = 30.0


@dataclass(frozen=True)
class Axis:
    """A stretch of values laid over a stretch of a drawing."""

    low: float
    high: float
    start: float
    """Where low lies in the drawing; above `end` on an upright axis."""
    end: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value; one outside the stretch lies at its border."""
        low, high, inside = self.low, self.high, min(max(value, self.low), self.high)
        if self.is_log:
            low, high, inside = math.log(low), math.log(high), math.log(inside)
        return self.start + (inside - low) / (high - low) * (self.end - self.start)


def fit_axis(
    values: Sequence[float],
    *,
    start: float,
    end: float,
    n_ticks: int = 5,
    within: tuple[float, float] = (-math.inf, math.inf),
    may_be_log: bool = False,
) -> Axis:
    """Return an axis that holds values, with a little room and about n_ticks ticks.

    Args:
        values: What must fit, finite; none gives an axis from 0 to 1.
        start: Place of the low end in the drawing.
        end: Place of the high end.
        within: Bounds that no room is left beyond, such as (0, 1) for scores.
        may_be_log: Go logarithmic where all values are positive and far apart.
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    if may_be_log and low > 0 and high / low >= _LOG_FROM:
        return Axis(low / 1.1, high * 1.1, start, end, _log_ticks(low, high), is_log=True)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = max(low - room, within[0]), min(high + room, within[1])
    return Axis(low, high, start, end, _ticks(low, high, n_ticks))


def _ticks(low: float, high: float, n_ticks: int) -> tuple[float, ...]:
    rough = (high - low) / n_ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in _ROUND if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Multiplying keeps a tick at 0 exactly 0; adding up would not.
    return tuple(number * step for number in range(first, last + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = tuple(tick for tick in fine if low / 1.1 <= tick <= high * 1.1)
    return (
        inside if len(inside) <= 7 else tuple(10.0**power for power in powers if low <= 10.0**power <= high)
    )
