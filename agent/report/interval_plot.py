"""Drawings of a score or a gain per recipe, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent.report.axis import Axis, fit_axis
from agent.report.facts import Facts
from agent.report.markup import Markup, element
from agent.report.phrases import VERDICT_WORDS, percent, points, span_points, span_text

__all__ = ["draw_gains", "draw_selection"]

_WIDTH: Final = 460
_LEFT: Final = 104
_RIGHT: Final = 386
_TOP: Final = 44
_ROW: Final = 36
_MARK: Final = 5.5
_CHAR: Final = 7.0


@dataclass(frozen=True)
class _Bar:
    name: str
    verdict: str
    middle: float
    low: float | None
    high: float | None
    label: str
    spoken: str


@dataclass(frozen=True)
class _Line:
    """An upright line across all bars, its name in a lane above them."""

    kind: str
    value: float
    label: str
    lane: int


def draw_selection(facts: Facts) -> Markup | None:
    """Return the selection score of every recipe, beside the incumbent's and the base model's lines."""
    bars = []
    for one in facts.entrants:
        middle, found = one.mean_selection, one.evidence.selection
        if middle is None:
            continue
        low, high = (found.low, found.high) if found else (None, None)
        spoken = percent(middle) + (f", interval {span_text(found.low, found.high)}" if found else "")
        bars.append(_Bar(one.name, one.verdict, middle, low, high, percent(middle), spoken))
    if not bars:
        return None
    lines = []
    if facts.base_selection is not None:
        label = f"untrained base {percent(facts.base_selection)}"
        lines.append(_Line("base", facts.base_selection, label, lane=0))
    if facts.incumbent.mean_selection is not None:
        label = f"incumbent {percent(facts.incumbent.mean_selection)}"
        lines.append(_Line("incumbent", facts.incumbent.mean_selection, label, lane=1))
    axis = fit_axis(_values(bars, lines), start=_LEFT, end=_RIGHT, within=(0.0, 1.0))
    ticks = [f"{100 * tick:.4g}%" for tick in axis.ticks]
    return _draw("selection", "Selection score of each recipe", bars, lines, axis, ticks)


def draw_gains(facts: Facts) -> Markup | None:
    """Return the gain of every candidate with its interval, against zero and the minimum gain."""
    bars = []
    for one in facts.candidates:
        ruling = one.ruling
        if ruling is None or ruling.gain is None:
            continue
        spoken = f"{points(ruling.gain)} points"
        if ruling.low is not None and ruling.high is not None:
            spoken += f", interval {span_points(ruling.low, ruling.high)}"
        bars.append(
            _Bar(one.name, one.verdict, ruling.gain, ruling.low, ruling.high, points(ruling.gain), spoken)
        )
    if not bars:
        return None
    asked = facts.task.minimum_gain
    lines = [_Line("zero", 0.0, "no change", lane=0 if asked > 0 else 1)]
    if asked > 0:
        lines.append(_Line("minimum", asked, f"asked for: more than {points(asked)}", lane=1))
    axis = fit_axis(_values(bars, lines), start=_LEFT, end=_RIGHT, within=(-1.0, 1.0))
    ticks = [f"{'+' if tick > 0 else '−' if tick < 0 else ''}{abs(100 * tick):.4g}" for tick in axis.ticks]
    zone = (axis.at(asked), float(_RIGHT))
    return _draw("gain", "Gain of each candidate over the incumbent", bars, lines, axis, ticks, zone)


def _values(bars: Sequence[_Bar], lines: Sequence[_Line]) -> list[float]:
    ends = [end for bar in bars for end in (bar.low, bar.middle, bar.high)]
    return [value for value in (*ends, *(line.value for line in lines)) if value is not None]


def _draw(
    key: str,
    title: str,
    bars: Sequence[_Bar],
    lines: Sequence[_Line],
    axis: Axis,
    ticks: Sequence[str],
    zone: tuple[float, float] | None = None,
) -> Markup:
    bottom = _TOP + _ROW * len(bars)
    spoken = "; ".join(f"{bar.name} ({VERDICT_WORDS[bar.verdict]}): {bar.spoken}" for bar in bars)
    return element(
        "svg",
        element("title", title, id=f"{key}-title"),
        element("desc", f"{spoken}. {'. '.join(line.label for line in lines)}.", id=f"{key}-desc"),
        _zone(zone, bottom),
        [_tick(axis.at(tick), text, bottom) for tick, text in zip(axis.ticks, ticks, strict=True)],
        [_reference(line, axis, bottom) for line in lines],
        # After all lines, since one may run through the other's name.
        [_reference_label(line, lines, axis) for line in lines],
        [_bar(bar, axis, _TOP + _ROW * (number + 0.5)) for number, bar in enumerate(bars)],
        viewBox=f"0 0 {_WIDTH} {bottom + 28}",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
        class_="plot",
    )


def _zone(zone: tuple[float, float] | None, bottom: float) -> Markup | None:
    if zone is None:
        return None
    left, right = zone
    return element("rect", x=left, y=_TOP, width=max(0.0, right - left), height=bottom - _TOP, class_="zone")


def _tick(x: float, text: str, bottom: float) -> list[Markup]:
    return [
        element("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="grid"),
        element("text", text, x=x, y=bottom + 18, text_anchor="middle", class_="tick"),
    ]


def _reference(line: _Line, axis: Axis, bottom: float) -> Markup:
    x = axis.at(line.value)
    return element("line", x1=x, x2=x, y1=_lane(line) + 5, y2=bottom, class_=f"reference {line.kind}")


def _reference_label(line: _Line, lines: Sequence[_Line], axis: Axis) -> Markup:
    """Return a line's name, beside it on the side where the other line is not, if it fits there."""
    x, width = axis.at(line.value), _CHAR * len(line.label)
    goes_left = any(line.value < other.value for other in lines)
    if goes_left and x - width < 0:
        goes_left = False
    elif not goes_left and x + width > _WIDTH:
        goes_left = True
    return element(
        "text",
        line.label,
        x=x + (1 if goes_left else -1),
        y=_lane(line),
        text_anchor="end" if goes_left else "start",
        class_="reference-label",
    )


def _lane(line: _Line) -> int:
    return 16 + 17 * line.lane


def _bar(bar: _Bar, axis: Axis, y: float) -> Markup:
    parts: list[Markup] = [
        element("text", bar.name, x=_LEFT - 12, y=y + 4.5, text_anchor="end", class_="name"),
        element("text", bar.label, x=_WIDTH - 4, y=y + 4.5, text_anchor="end", class_="value"),
    ]
    if bar.low is not None and bar.high is not None:
        low, high = axis.at(bar.low), axis.at(bar.high)
        parts.append(element("line", x1=low, x2=high, y1=y, y2=y, class_="whisker"))
        parts += [element("line", x1=x, x2=x, y1=y - 5, y2=y + 5, class_="cap") for x in (low, high)]
    parts.append(_marker(bar.verdict, axis.at(bar.middle), y))
    return element("g", element("title", f"{bar.name}: {bar.spoken}"), parts, class_=f"bar {bar.verdict}")


def _marker(verdict: str, x: float, y: float) -> Markup:
    """Return a shape of its own for every verdict, for eyes that see no colours."""
    if verdict == "keep":
        size = _MARK + 1.5
        path = f"M{x:.2f} {y - size:.2f}l{size} {size}l{-size} {size}l{-size} {-size}z"
        return element("path", d=path, class_="marker")
    if verdict == "discard":
        size = _MARK - 1
        path = f"M{x - size:.2f} {y - size:.2f}l{2 * size} {2 * size}m0 {-2 * size}l{-2 * size} {2 * size}"
        return element("path", d=path, class_="marker cross")
    if verdict == "incumbent":
        side = 2 * _MARK - 1
        return element("rect", x=x - side / 2, y=y - side / 2, width=side, height=side, class_="marker")
    return element("circle", cx=x, cy=y, r=_MARK - 0.5, class_="marker open")
