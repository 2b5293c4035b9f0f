"""The recipes of an iteration as a table, and the reasons of the verdicts."""

from __future__ import annotations

from agent.report.curve_plot import series_class
from agent.report.facts import Entrant, Facts
from agent.report.markup import Child, Markup, element
from agent.report.phrases import (
    VERDICT_SIGNS,
    VERDICT_WORDS,
    level_text,
    percent,
    points,
    seconds,
    span_points,
    span_text,
)
from agent.secondary import describe_secondary
from tools.patch import Change, format_values

__all__ = ["render_candidates", "render_reasons"]

_COLUMNS = ("Recipe", "Verdict", "Gain, points", "Selection", "Dev", "Time")


def render_candidates(facts: Facts) -> Markup:
    """Return the table: the incumbent, then every candidate with its change, scores and verdict."""
    head = element(
        "tr", [element("th", name, scope="col", role="columnheader") for name in _COLUMNS], role="row"
    )
    return element(
        "section",
        element("h2", "Candidates", id="candidates"),
        element(
            "table",
            element("caption", _caption(facts)),
            element("thead", head, role="rowgroup"),
            element("tbody", [_row(facts, one) for one in facts.entrants], role="rowgroup"),
            class_="candidates",
            # On a narrow screen the rows become cards; the roles keep it a table to a screen reader.
            role="table",
        ),
        aria_labelledby="candidates",
    )


def render_reasons(facts: Facts) -> Markup | None:
    """Return why each candidate was kept, discarded or left open, guards included."""
    if not facts.candidates:
        return None
    return element(
        "section",
        element("h2", "Why", id="why"),
        element("ol", [_reason(one) for one in facts.candidates], class_="reasons"),
        aria_labelledby="why",
    )


def badge(verdict: str) -> Markup:
    """Return a verdict as a sign and a word."""
    sign = element("span", VERDICT_SIGNS[verdict], aria_hidden="true")
    return element("span", sign, " ", VERDICT_WORDS[verdict], class_=f"badge {verdict}")


def _caption(facts: Facts) -> str:
    levels = {one.ruling.level for one in facts.candidates if one.ruling and one.ruling.level is not None}
    scores = f"Intervals of scores are at {level_text(facts.task.level)}"
    if not levels:
        return f"{scores}."
    shown = " and ".join(level_text(level) for level in sorted(levels))
    return (
        f"{scores}; those of gains at {shown}, paired by item, so that all verdicts of this "
        f"bakeoff hold together at {level_text(facts.task.level)}."
    )


def _row(facts: Facts, one: Entrant) -> Markup:
    return element(
        "tr",
        element("th", _recipe(facts, one), scope="row", role="rowheader"),
        _cell("Verdict", badge(one.verdict)),
        _cell("Gain, points", _gain(one)),
        _cell("Selection", _selection(one)),
        _cell("Dev", element("span", percent(one.mean_dev), class_="figure")),
        _cell("Time", element("span", seconds(one.wall_s), class_="figure")),
        role="row",
        class_=one.verdict,
    )


def _cell(label: str, *children: Child) -> Markup:
    return element("td", children, role="cell", data_label=label)


def _recipe(facts: Facts, one: Entrant) -> list[Markup | None]:
    swatch = element("span", class_=f"swatch {series_class(facts, one.name)}", aria_hidden="true")
    name = element("span", swatch, one.name, class_="recipe-name")
    if one.is_incumbent:
        return [name, element("p", "the recipe to beat", class_="hypothesis")]
    chips = element("ul", [_chip(change) for change in one.changes], class_="chips") if one.changes else None
    return [name, chips, element("p", one.hypothesis, class_="hypothesis") if one.hypothesis else None]


def _chip(change: Change) -> Markup:
    before, after = change.before, change.after
    field = element("span", change.field, class_="field")
    if isinstance(before, tuple) and isinstance(after, tuple):
        gone = [element("del", f"−{entry}") for entry in before if entry not in after]
        come = [element("ins", f"+{entry}") for entry in after if entry not in before]
        return element("li", field, [[" ", part] for part in (*gone, *come)])
    was, is_now = (format_values({"": value}).strip() for value in (before, after))
    return element("li", field, " ", element("del", was), " → ", element("ins", is_now))


def _gain(one: Entrant) -> list[Markup]:
    ruling = one.ruling
    shown = [element("span", points(one.gain), class_="figure")]
    if ruling is not None and ruling.low is not None and ruling.high is not None:
        shown.append(element("span", span_points(ruling.low, ruling.high), class_="span"))
    if one.expected_gain is not None:
        shown.append(element("span", f"expected {points(one.expected_gain)}", class_="span"))
    return shown


def _selection(one: Entrant) -> list[Markup]:
    found = one.evidence.selection
    shown = [element("span", percent(one.mean_selection), class_="figure")]
    if found is not None:
        shown.append(element("span", span_text(found.low, found.high), class_="span"))
        seeds = "1 seed" if found.n_seeds == 1 else f"{found.n_seeds} seeds"
        shown.append(element("span", f"{found.n_items} items, {seeds}", class_="span"))
    return shown


def _reason(one: Entrant) -> Markup:
    told = [one.ruling.reason] if one.ruling else []
    told += [error for error in one.errors if not any(error in text for text in told)]
    guards = [
        element(
            "li",
            element(
                "span",
                element("span", "✓" if guard.passed else "✕", aria_hidden="true"),
                " held" if guard.passed else " fell",
                class_=f"badge {'keep' if guard.passed else 'discard'}",
            ),
            " ",
            element("span", guard.name, class_="field"),
            f": {guard.detail}",
        )
        for guard in (one.ruling.guards if one.ruling else ())
    ]
    return element(
        "li",
        element("p", element("strong", one.name), " ", badge(one.verdict), class_="reason-head"),
        [element("p", text) for text in told or ["no verdict was reached"]],
        element("ul", guards, class_="guards", aria_label=f"guards of {one.name}") if guards else None,
        _costs(one),
    )


def _costs(one: Entrant) -> Markup | None:
    if one.ruling is None or not one.ruling.secondary:
        return None
    told = "; ".join(map(describe_secondary, one.ruling.secondary))
    return element("p", f"Beside the score, deciding nothing: {told}.", class_="hypothesis")
