"""The picture: gains, scores and curves of an iteration as one PNG, for a chat or a slide."""

from __future__ import annotations

import io
from typing import Final, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from agent.report.axis import fit_axis
from agent.report.curve_plot import series_class, thin_points
from agent.report.evidence import Point
from agent.report.facts import Entrant, Facts
from agent.report.overview import headline
from agent.report.phrases import VERDICT_WORDS, percent, points

__all__ = ["draw_picture"]

_INK: Final = "#1d1b18"
_SOFT: Final = "#5f594f"
_RULE: Final = "#e4dfd5"
_ZONE: Final = "#e2f3ec"
# Colour, marker and fill of each verdict; the shapes are those of the page.
_VERDICTS: Final = {
    "keep": ("#006b4f", "D", "#006b4f"),
    "discard": ("#a63c00", "X", "#a63c00"),
    "inconclusive": ("#6b5200", "o", "#ffffff"),
    "refused": ("#5f594f", "o", "#ffffff"),
    "incumbent": (_INK, "s", _INK),
}
_SERIES: Final = {
    "series-incumbent": (_INK, "-"),
    "series-0": ("#0072b2", (0, (7, 2))),
    "series-1": ("#d55e00", (0, (2, 2))),
    "series-2": ("#00875f", (0, (8, 2, 2, 2))),
    "series-3": ("#b0508a", (0, (4, 1.5))),
    "series-4": ("#a87400", (0, (10, 3))),
    "series-5": ("#3a8fc4", (0, (4, 2, 1, 2, 1, 2))),
    "series-other": ("#b5aea2", "-"),
}


def draw_picture(facts: Facts) -> bytes:
    """Return the PNG. It holds numbers and names of candidates, and no text of rows or planners."""
    rows = max(2, len(facts.entrants))
    has_curves = any(curve.losses or curve.scores for one in facts.entrants for curve in one.evidence.curves)
    above = 1.6 + 0.42 * rows
    height = above + (3.4 if has_curves else 0.0)
    figure = Figure(figsize=(11, height), dpi=150)
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.12, hspace=0.06)
    FigureCanvasAgg(figure)
    ratios = [above - 0.8, 3.4] if has_curves else [1.0]
    grid = figure.subplots(len(ratios), 2, squeeze=False, height_ratios=ratios)
    figure.suptitle(
        f"{facts.task.name} {facts.record.iteration_id}: {headline(facts)}",
        x=0.01,
        ha="left",
        fontsize=15,
        fontweight="bold",
        color=_INK,
        parse_math=False,
    )
    _draw_gains(grid[0][0], facts)
    _draw_selection(grid[0][1], facts)
    if has_curves:
        _draw_losses(grid[1][0], facts)
        _draw_mid_scores(grid[1][1], facts)
    # Without a name of the software, equal input gives equal bytes under any version's label.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _draw_gains(axes: Axes, facts: Facts) -> None:
    shown = [one for one in facts.candidates if one.gain is not None]
    axes.set_visible(bool(shown))
    asked = 100 * facts.task.minimum_gain
    _style(axes, "Gain over the incumbent, points")
    for number, one in enumerate(shown):
        ruling = one.ruling
        ends = (ruling.low, ruling.high) if ruling else (None, None)
        _bar(axes, number, one, one.gain, ends)
    _names(axes, [f"{one.name}  {points(one.gain)}\n{VERDICT_WORDS[one.verdict]}" for one in shown])
    axes.axvline(0, color=_INK, linewidth=1)
    if asked > 0:
        axes.axvline(asked, color=_VERDICTS["keep"][0], linewidth=1, linestyle="--")
    left, right = axes.get_xlim()
    axes.axvspan(asked, max(right, asked), color=_ZONE, zorder=0, linewidth=0)
    axes.set_xlim(left, max(right, asked))


def _draw_selection(axes: Axes, facts: Facts) -> None:
    shown = [one for one in facts.entrants if one.mean_selection is not None]
    _style(axes, "Selection score, %")
    for number, one in enumerate(shown):
        found = one.evidence.selection
        _bar(axes, number, one, one.mean_selection, (found.low, found.high) if found else (None, None))
    _names(axes, [f"{one.name}  {percent(one.mean_selection)}" for one in shown])
    _reference(axes, "incumbent", facts.incumbent.mean_selection, "--", lane=0)
    _reference(axes, "untrained base", facts.base_selection, ":", lane=1)


def _reference(axes: Axes, name: str, score: float | None, dash: str, *, lane: int) -> None:
    if score is None:
        return
    axes.axvline(100 * score, color=_SOFT, linewidth=1.3, linestyle=dash)
    left, right = axes.get_xlim()
    on_the_left = 100 * score < (left + right) / 2
    axes.annotate(
        f"{name} {percent(score)}",
        xy=(100 * score, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 2 + 10 * lane),
        textcoords="offset points",
        ha="left" if on_the_left else "right",
        va="bottom",
        fontsize=8,
        color=_SOFT,
    )


def _draw_losses(axes: Axes, facts: Facts) -> None:
    _style(axes, "Training loss by step")
    values = [value for one in facts.entrants for curve in one.evidence.curves for _, value in curve.losses]
    for one in facts.entrants:
        _curves(axes, facts, one, [thin_points(curve.losses) for curve in one.evidence.curves], marker="")
    _legend(axes, "upper right")
    up = fit_axis(values, start=0.0, end=1.0, may_be_log=True)
    if up.is_log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_yticks(up.ticks, [f"{tick:.3g}" for tick in up.ticks])


def _draw_mid_scores(axes: Axes, facts: Facts) -> None:
    _style(axes, "Dev score by step, %")
    for one in facts.entrants:
        scaled = [tuple((step, 100 * value) for step, value in curve.scores) for curve in one.evidence.curves]
        _curves(axes, facts, one, scaled, marker=".")
    _legend(axes, "lower right")


def _legend(axes: Axes, place: Literal["upper right", "lower right"]) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.set_visible(bool(axes.lines))
    if handles:
        axes.legend(handles, labels, fontsize=8, loc=place, edgecolor="none", framealpha=0.85)


def _curves(axes: Axes, facts: Facts, one: Entrant, curves: list[tuple[Point, ...]], *, marker: str) -> None:
    style = series_class(facts, one.name)
    colour, dash = _SERIES[style]
    is_named = style != "series-other"
    for number, curve in enumerate(curves):
        if curve:
            steps, values = zip(*curve, strict=True)
            axes.plot(
                steps,
                values,
                color=colour,
                linestyle=dash,
                marker=marker,
                linewidth=1.8 if is_named and number == 0 else 0.9,
                label=one.name if is_named and number == 0 else None,
                zorder=3 if is_named else 2,
            )


def _bar(
    axes: Axes, y: int, one: Entrant, middle: float | None, ends: tuple[float | None, float | None]
) -> None:
    colour, marker, fill = _VERDICTS[one.verdict]
    low, high = ends
    if low is not None and high is not None:
        axes.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=2, marker="|", markersize=9)
    if middle is not None:
        axes.plot(
            [100 * middle],
            [y],
            marker=marker,
            markersize=8,
            color=colour,
            markerfacecolor=fill,
            markeredgewidth=1.8,
            linestyle="",
        )


def _names(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=9.5, color=_INK)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=_INK, pad=24)
    axes.grid(axis="both", color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, labelsize=9, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
