"""Two texts side by side, with what differs marked."""

from __future__ import annotations

import difflib
import re
from typing import Final

from agent.report.markup import Markup, element, join

__all__ = ["MAX_CHARS", "clip", "mark_differences"]

MAX_CHARS: Final = 600
_TOKEN: Final = re.compile(r"\w+|\s+|[^\w\s]")
# Texts with less in common than this are two texts, not one with changes.
_ALIKE: Final = 0.35


def clip(text: str, most: int = MAX_CHARS) -> str:
    """Return text, cut to so many characters with a note of how many are left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most} more characters)"


def mark_differences(expected: str, answered: str) -> tuple[Markup, Markup]:
    """Return both texts as markup, clipped, their differing parts inside `mark` elements."""
    wanted, given = _TOKEN.findall(clip(expected)), _TOKEN.findall(clip(answered))
    matcher = difflib.SequenceMatcher(None, wanted, given, autojunk=False)
    if matcher.ratio() < _ALIKE:
        return join("".join(wanted)), join("".join(given))
    left: list[Markup] = []
    right: list[Markup] = []
    for kind, first, last, from_, to in matcher.get_opcodes():
        for side, part in ((left, wanted[first:last]), (right, given[from_:to])):
            text = "".join(part)
            if text:
                side.append(join(text) if kind == "equal" else element("mark", text))
    return join(left), join(right)
