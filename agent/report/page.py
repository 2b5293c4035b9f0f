"""The page: the whole report as one HTML document that needs nothing beside it."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from agent.report.candidates import render_candidates, render_reasons
from agent.report.curve_plot import draw_losses, draw_mid_scores, series_class
from agent.report.facts import Facts
from agent.report.interval_plot import draw_gains, draw_selection
from agent.report.markup import Child, Markup, element, join
from agent.report.mistakes import render_mistakes
from agent.report.overview import headline, render_overview
from agent.report.phrases import level_text, points
from agent.report.provenance import render_provenance

__all__ = ["render_page"]

# A second lock behind the escaping: the page may run nothing and load nothing.
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)


def render_page(facts: Facts) -> str:
    """Return the page as HTML. Texts of rows and planners are escaped, and no script is allowed to run."""
    sections = (
        render_overview(facts),
        render_candidates(facts),
        _scores(facts),
        render_reasons(facts),
        _training(facts),
        render_mistakes(facts),
        render_provenance(facts),
    )
    # A line a section, so that two reports can be compared in git.
    body = element("body", element("main", [(section, "\n") for section in sections if section]))
    return f"<!doctype html>\n{element('html', _head(facts), body, lang='en')}\n"


def _head(facts: Facts) -> Markup:
    style = files("agent.report").joinpath("style.css").read_text(encoding="utf-8")
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{facts.task.name} {facts.record.iteration_id}: {headline(facts)}"),
        element("link", rel="icon", href="data:,"),
        element("style", Markup(f"\n{style}")),
    )


def _scores(facts: Facts) -> Markup | None:
    level = level_text(facts.task.level)
    asked = facts.task.minimum_gain
    beyond = f"{points(asked)} points" if asked > 0 else "zero"
    return _figures(
        "Scores",
        _figure(
            draw_gains(facts),
            f"Gain over the incumbent in points, paired by item. A candidate is kept when its whole "
            f"bar lies in the shaded part, above {beyond}, and no guard fell.",
        ),
        _figure(
            draw_selection(facts),
            f"Selection score with its {level} interval. Two bars may overlap although the paired gain is "
            "clear; verdicts rest on the gains.",
        ),
    )


def _training(facts: Facts) -> Markup | None:
    return _figures(
        "Training",
        _figure(draw_losses(facts), "Training loss by optimizer step; thin lines are further seeds."),
        _figure(
            draw_mid_scores(facts), "Score on a few dev rows while training ran. No verdict rests on it."
        ),
        legend=_legend(facts),
    )


def _figures(title: str, *figures: Markup | None, legend: Markup | None = None) -> Markup | None:
    drawn = [figure for figure in figures if figure is not None]
    if not drawn:
        return None
    key = title.lower()
    return element(
        "section",
        element("h2", title, id=key),
        legend,
        element("div", drawn, class_="figures"),
        aria_labelledby=key,
    )


def _figure(drawing: Markup | None, caption: Child) -> Markup | None:
    return None if drawing is None else element("figure", drawing, element("figcaption", caption))


def _legend(facts: Facts) -> Markup:
    shown = [one for one in facts.entrants if one.evidence.curves]
    return element("ul", [_key(series_class(facts, one.name), one.name) for one in shown], class_="legend")


def _key(style: str, name: str) -> Markup:
    line = element("line", x1=1, x2=27, y1=6, y2=6, class_="curve")
    swatch = element("svg", line, viewBox="0 0 28 12", width=28, height=12, aria_hidden="true", class_=style)
    return element("li", swatch, join(" ", name))
