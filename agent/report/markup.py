"""Markup that is well-formed and escaped by construction."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Final

__all__ = ["Child", "Markup", "element", "escape", "join"]

_VOID: Final = {"meta", "link", "br", "hr", "line", "rect", "circle", "path", "polyline", "use"}
# Controls, lone surrogates, direction overrides and stray spaces of no width: what would break
# the file's encoding, or make a text look like another one. Joiners stay: scripts need them.
_INVISIBLE: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200b\u2028-\u202e\u2060-\u2069\ufeff\ufffe\uffff]"
)


class Markup(str):
    """Text that is markup already; every other text is escaped before it joins any."""

    __slots__ = ()


Child = Markup | str | int | None | Iterable["Child"]


def escape(text: str) -> Markup:
    """Return text as markup that shows it, what cannot be seen written as \\uXXXX."""
    visible = _INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return Markup(html.escape(visible, quote=True))


def join(*children: Child) -> Markup:
    """Return the children one after another; None is nothing, a text is escaped."""
    return Markup("".join(_parts(children)))


def element(tag: str, /, *children: Child, **attributes: str | int | float | None) -> Markup:
    """Return an element.

    Args:
        tag: Its name.
        children: What it holds.
        attributes: `class_` stands for class, an underscore inside a name for a hyphen; one
            that is None is left out.
    """
    opening = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{opening}/>")
    return Markup(f"<{tag}{opening}>{join(*children)}</{tag}>")


def _parts(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if isinstance(child, Markup):
            yield child
        elif isinstance(child, str | int):
            yield escape(str(child))
        elif child is not None:
            yield from _parts(child)


def _plain(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
