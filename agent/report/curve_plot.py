"""Drawings of how training went: loss, and scores on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from agent.report.axis import Axis, fit_axis
from agent.report.evidence import Curve, Point
from agent.report.facts import Facts
from agent.report.markup import Markup, element

__all__ = ["MAX_SERIES", "draw_losses", "draw_mid_scores", "series_class", "thin_points"]

MAX_SERIES: Final = 6
"""Candidates with a colour and a dash of their own; further ones share a grey."""
_WIDTH: Final = 460
_LEFT: Final = 46
_RIGHT: Final = 366
_TOP: Final = 14
_BOTTOM: Final = 226
_MAX_POINTS: Final = 64
_LABEL_GAP: Final = 15.0


@dataclass(frozen=True)
class _Path:
    name: str
    style: str
    points: tuple[Point, ...]
    is_first_seed: bool


def series_class(facts: Facts, name: str) -> str:
    """Return the style of a recipe's lines and swatches: the same wherever it is drawn."""
    if name == facts.incumbent.name:
        return "series-incumbent"
    number = [one.name for one in facts.candidates].index(name)
    return f"series-{number}" if number < MAX_SERIES else "series-other"


def draw_losses(facts: Facts) -> Markup | None:
    """Return the training loss of every trial, or None where no trial told of it."""
    paths = _paths(facts, lambda curve: thin_points(curve.losses))
    return _draw("loss", "Training loss by step", paths, lambda tick: f"{tick:.3g}", may_be_log=True)


def draw_mid_scores(facts: Facts) -> Markup | None:
    """Return the scores that trials had on the way, or None where none was taken."""
    paths = _paths(facts, lambda curve: curve.scores)
    return _draw(
        "mid",
        "Dev score by step",
        paths,
        lambda tick: f"{100 * tick:.4g}%",
        within=(0.0, 1.0),
        dotted=True,
    )


def thin_points(points: Sequence[Point], most: int = _MAX_POINTS) -> tuple[Point, ...]:
    """Return at most so many points: means over equal runs of steps where there are more."""
    if len(points) <= most:
        return tuple(points)
    parts = [
        points[number * len(points) // most : (number + 1) * len(points) // most] for number in range(most)
    ]
    return tuple((part[len(part) // 2][0], sum(value for _, value in part) / len(part)) for part in parts)


def _paths(facts: Facts, choose: Callable[[Curve], tuple[Point, ...]]) -> list[_Path]:
    found = []
    # The incumbent last, so that it lies on top.
    for one in (*reversed(facts.candidates), facts.incumbent):
        drawn = [points for curve in one.evidence.curves if (points := choose(curve))]
        style = series_class(facts, one.name)
        found += [_Path(one.name, style, points, number == 0) for number, points in enumerate(drawn)]
    return found


def _draw(
    key: str,
    title: str,
    paths: Sequence[_Path],
    say: Callable[[float], str],
    *,
    within: tuple[float, float] = (-math.inf, math.inf),
    may_be_log: bool = False,
    dotted: bool = False,
) -> Markup | None:
    if not paths:
        return None
    steps = [float(step) for path in paths for step, _ in path.points]
    across = fit_axis([0.0, *steps], start=_LEFT, end=_RIGHT, within=(0.0, max(steps)))
    up = fit_axis(
        [value for path in paths for _, value in path.points],
        start=_BOTTOM,
        end=_TOP,
        within=within,
        may_be_log=may_be_log,
    )
    spoken = "; ".join(
        f"{path.name} from {say(path.points[0][1])} to {say(path.points[-1][1])} at step {path.points[-1][0]}"
        for path in paths
    )
    return element(
        "svg",
        element("title", title, id=f"{key}-title"),
        element("desc", f"{spoken}.", id=f"{key}-desc"),
        [_level(up.at(tick), say(tick)) for tick in up.ticks],
        [_step(across.at(tick), f"{tick:g}") for tick in across.ticks],
        [_path(path, across, up, dotted) for path in paths],
        _end_labels(paths, across, up),
        viewBox=f"0 0 {_WIDTH} {_BOTTOM + 24}",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
        class_="plot",
    )


def _level(y: float, text: str) -> list[Markup]:
    return [
        element("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, class_="grid"),
        element("text", text, x=_LEFT - 7, y=y + 4, text_anchor="end", class_="tick"),
    ]


def _step(x: float, text: str) -> Markup:
    return element("text", text, x=x, y=_BOTTOM + 17, text_anchor="middle", class_="tick")


def _path(path: _Path, across: Axis, up: Axis, dotted: bool) -> Markup:
    places = [(across.at(step), up.at(value)) for step, value in path.points]
    line = element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places), class_="curve")
    # A single point is no line; without a dot it would be nothing.
    dots = (
        [element("circle", cx=x, cy=y, r=2.6, class_="dot") for x, y in places]
        if _dots(places, dotted)
        else []
    )
    seed = "" if path.is_first_seed else " further-seed"
    return element("g", line, dots, class_=f"{path.style}{seed}")


def _dots(places: Sequence[tuple[float, float]], dotted: bool) -> bool:
    return dotted or len(places) == 1


def _end_labels(paths: Sequence[_Path], across: Axis, up: Axis) -> list[Markup]:
    """Name the lines at their ends, pushed apart where they would lie on each other."""
    named = [path for path in paths if path.is_first_seed and path.style != "series-other"]
    named.sort(key=lambda path: (up.at(path.points[-1][1]), path.name))
    labels, last = [], -math.inf
    for path in named:
        y = max(up.at(path.points[-1][1]) + 4, last + _LABEL_GAP)
        labels.append((path, y))
        last = y
    # What was pushed below the drawing is pushed back up, from the lowest.
    floor = _BOTTOM + 4.0
    placed = []
    for path, y in reversed(labels):
        floor_y = min(y, floor)
        placed.append((path, floor_y))
        floor = floor_y - _LABEL_GAP
    return [
        element("text", path.name, x=across.at(path.points[-1][0]) + 7, y=y, class_=f"end-label {path.style}")
        for path, y in reversed(placed)
    ]
