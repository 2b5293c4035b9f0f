"""The section on dev rows that the best recipe still gets wrong."""

from __future__ import annotations

from typing import Final

from agent.report.facts import Facts
from agent.report.markup import Markup, element
from agent.report.text_diff import clip, mark_differences
from agent.report.wrong_rows import WrongGroup, WrongItem, WrongRows, find_wrong_rows

__all__ = ["render_mistakes"]

_SHOWN: Final = 6


def render_mistakes(facts: Facts) -> Markup | None:
    """Return the wrong dev rows of the best recipe by kind of error; None where none is known.

    Only dev rows are ever shown: what is seen of a judged split would be learned from.
    """
    best = facts.best
    before = () if best.is_incumbent else facts.incumbent.evidence.dev_rows
    if not best.evidence.dev_rows:
        return None
    found = find_wrong_rows(best.evidence.dev_rows, before)
    who = "the incumbent" if best.is_incumbent else best.name
    where = f"lineage/{best.trials[0].trial_id}/dev.jsonl"
    return element(
        "section",
        element("h2", f"What {who} still gets wrong on dev", id="mistakes"),
        element("p", _summary(found, has_before=bool(before)), class_="lead"),
        [_group(group, where, is_first=number == 0) for number, group in enumerate(found.groups)],
        aria_labelledby="mistakes",
    )


def _summary(found: WrongRows, *, has_before: bool) -> str:
    text = f"{found.n_wrong or 'None'} of {found.n_items} rows {'is' if found.n_wrong == 1 else 'are'} wrong"
    text += " on some seed." if found.n_seeds > 1 else "."
    if has_before:
        text += (
            f" Against the incumbent, {len(found.mended)} rows are mended "
            f"and {len(found.broken)} are newly wrong."
        )
    return text


def _group(group: WrongGroup, where: str, *, is_first: bool) -> Markup:
    n = len(group.items)
    before = "" if group.n_before is None else f"the incumbent had {group.n_before}"
    left = n - _SHOWN
    return element(
        "details",
        element(
            "summary",
            element("span", group.kind.replace("_", " "), class_="kind"),
            " ",
            element("span", f"{n} row{'' if n == 1 else 's'}", class_="count"),
            " ",
            element("span", before, class_="span"),
        ),
        element("ul", [_item(item) for item in group.items[:_SHOWN]], class_="mistakes"),
        element("p", f"{left} more in {where}.", class_="more") if left > 0 else None,
        open="" if is_first else None,
    )


def _item(item: WrongItem) -> Markup:
    row = item.row
    expected, answered = mark_differences(row.expected or "", row.output or "")
    facts = [row.item_id]
    if item.n_seeds > 1:
        facts.append(f"wrong on {item.n_wrong} of {item.n_seeds} seeds")
    if row.error and ":" in row.error:
        facts.append(row.error.partition(":")[2])
    if row.forbidden:
        facts.append("forbidden output")
    if item.is_new:
        facts.append("newly wrong")
    return element(
        "li",
        element("p", " · ".join(facts), class_="item-id"),
        element("p", clip(row.prompt or "(no prompt kept)"), class_="prompt"),
        element(
            "dl",
            element("dt", "expected"),
            element("dd", element("code", expected), class_="expected"),
            element("dt", "answered"),
            element("dd", element("code", answered or "(nothing)"), class_="answered"),
        ),
    )
