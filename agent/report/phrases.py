"""How the report says numbers and verdicts."""

from __future__ import annotations

from typing import Final

__all__ = [
    "UNKNOWN",
    "VERDICT_SIGNS",
    "VERDICT_WORDS",
    "level_text",
    "percent",
    "points",
    "seconds",
    "span_points",
    "span_text",
]

UNKNOWN: Final = "–"
VERDICT_WORDS: Final = {
    "keep": "kept",
    "discard": "discarded",
    "inconclusive": "inconclusive",
    "refused": "never trained",
    "incumbent": "incumbent",
}
# A verdict is told by a word and a sign; its colour only repeats them.
VERDICT_SIGNS: Final = {"keep": "✓", "discard": "✕", "inconclusive": "?", "refused": "⊘", "incumbent": "●"}


def percent(score: float | None) -> str:
    """Return a score in [0, 1] as `41.3%`."""
    return UNKNOWN if score is None else f"{_rounded(score)}%"


def points(gain: float | None) -> str:
    """Return a difference of scores as `+4.2`, with a true minus sign."""
    if gain is None:
        return UNKNOWN
    text = _rounded(abs(gain))
    sign = "" if float(text) == 0 else "+" if gain > 0 else "−"
    return f"{sign}{text}"


def span_text(low: float, high: float) -> str:
    """Return an interval of scores as `31.0 to 52.5`."""
    return f"{_rounded(low)} to {_rounded(high)}"


def span_points(low: float, high: float) -> str:
    """Return an interval of differences as `−1.0 to +9.4`."""
    return f"{points(low)} to {points(high)}"


def level_text(level: float) -> str:
    """Return a confidence level as `95%` or `98.33%`."""
    return f"{100 * level:.4g}%"


def seconds(value: float | None) -> str:
    """Return a duration as `8.4 s`, `12 min 05 s` or `3 h 07 min`."""
    if value is None:
        return UNKNOWN
    if value < 10:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, of_hour = divmod(minutes, 60)
    if hours:
        return f"{hours} h {of_hour:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _rounded(share: float) -> str:
    # Adding 0.0 turns the -0.0 that rounding leaves into 0.0.
    return f"{round(100 * share, 1) + 0.0:.1f}"
