"""The page: the whole report as one HTML document that needs nothing beside it."""

from __future__ import annotations

from agent.report.facts import Entrant, Facts
from agent.report.markup import Markup, element, join

__all__ = ["render_page"]


def render_page(facts: Facts) -> str:
    """Return the page as HTML."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("title", f"{facts.record.iteration_id} · {facts.task.name}"),
    )
    body = element("body", element("p", facts.record.decision), _table(facts))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _table(facts: Facts) -> Markup:
    header = element("tr", [element("th", name) for name in ("recipe", "changes", "verdict", "gain")])
    return element("table", header, join(*(_row(one) for one in facts.entrants)))


def _row(one: Entrant) -> Markup:
    cells = (one.name, ", ".join(map(str, one.changes)), one.verdict, str(one.gain))
    return element("tr", [element("td", cell) for cell in cells])
