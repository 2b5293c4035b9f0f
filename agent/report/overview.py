"""The head of the page: the decision, and the numbers that it rests on."""

from __future__ import annotations

from agent.report.facts import Facts
from agent.report.markup import Markup, element
from agent.report.phrases import level_text, percent, points, seconds, span_points, span_text
from agent.rerun.log import RERUN_PLANNER

__all__ = ["headline", "render_overview"]


def headline(facts: Facts) -> str:
    """Return the decision in a few words."""
    kept = facts.promoted
    if facts.record.planner == RERUN_PLANNER:
        return facts.record.decision.partition(":")[0]
    if kept is not None:
        return f"{kept.name} is kept: {points(kept.gain)} points on selection"
    if any(one.ruling for one in facts.candidates):
        return "The incumbent stays"
    return "The incumbent stays: nothing could be trained"


def render_overview(facts: Facts) -> Markup:
    """Return the decision sentence first, then its numbers, then what the planner had in mind."""
    record = facts.record
    return element(
        "header",
        element("p", f"{facts.task.name} · {record.iteration_id}", class_="eyebrow"),
        element("h1", headline(facts)),
        element("p", record.decision, class_="decision"),
        element("dl", _tiles(facts), class_="tiles"),
        _proposal(facts),
        _remarks("Notes", record.notes),
        _remarks("What could not be read", facts.problems),
        class_=f"overview {'kept' if facts.promoted else 'stays'}",
    )


def _tiles(facts: Facts) -> list[Markup]:
    tried = [one for one in facts.candidates if one.trials]
    refused = len(facts.candidates) - len(tried)
    return [
        *_gain_tile(facts),
        _tile("Incumbent on selection", percent(facts.incumbent.mean_selection), _selection_span(facts)),
        _tile("Untrained base model", percent(facts.base_selection), "on selection"),
        _tile("Candidates", str(len(tried)), f"trained, {refused} refused" if refused else "trained"),
        _tile("Training and scoring", seconds(facts.record.wall_s), "all trials together"),
    ]


def _gain_tile(facts: Facts) -> list[Markup]:
    best = facts.best
    ruling = best.ruling
    if ruling is None or ruling.gain is None:
        return []
    note = "no interval"
    if ruling.low is not None and ruling.high is not None:
        note = span_points(ruling.low, ruling.high)
    return [_tile(f"Gain of {best.name}, points", points(ruling.gain), note, best.verdict)]


def _selection_span(facts: Facts) -> str:
    found = facts.incumbent.evidence.selection
    if found is None:
        return "interval unknown"
    return f"{span_text(found.low, found.high)} at {level_text(found.level)}"


def _tile(label: str, value: str, note: str, kind: str | None = None) -> Markup:
    return element(
        "div",
        element("dt", label),
        element("dd", element("strong", value), element("span", note)),
        class_=f"tile {kind}" if kind else "tile",
    )


def _proposal(facts: Facts) -> Markup | None:
    if not facts.record.hypothesis:
        return None
    who = element("span", f"Proposed by {facts.record.planner}", class_="label")
    return element("p", who, " ", facts.record.hypothesis, class_="proposal")


def _remarks(title: str, remarks: tuple[str, ...]) -> Markup | None:
    if not remarks:
        return None
    items = element("ul", [element("li", remark) for remark in remarks])
    return element("aside", element("h2", title), items, class_="remarks")
