"""The summary of one series of measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

__all__ = ["format_number", "known_number", "summarize_metric"]


def summarize_metric(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """Return n, mean, median, min and max of the values that are known.

    None, NaN, infinities and what is no number are unknown and left out. Without a known value
    n is 0 and the rest is None. Nothing is rounded: rounding belongs in print.
    """
    known = sorted(number for number in map(known_number, values) if number is not None)
    if not known:
        return {"n": 0, "mean": None, "median": None, "min": None, "max": None}
    return {
        "n": len(known),
        "mean": math.fsum(known) / len(known),
        "median": statistics.median(known),
        "min": known[0],
        "max": known[-1],
    }


def known_number(value: object) -> float | int | None:
    """Return value where it is a finite number, else None. True and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # a whole number that no float can hold
        return None


def format_number(value: float | None, digits: int = 2, *, sign: bool = False, unit: str = "") -> str:
    """Return value rounded for print; a dash where it is unknown."""
    if value is None:
        return "—"
    return f"{value:{'+' if sign else ''}.{digits}f}{unit}"
