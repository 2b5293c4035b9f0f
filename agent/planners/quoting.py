"""Quoting: text that others wrote, shown to a model so that it cannot be taken for the prompt's own."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["cut", "quote", "tagged"]


def quote(value: Any) -> str:
    """Return value as JSON on one line, without the character that opens a tag.

    Quotes and line breaks are escaped, so a quoted text ends where the JSON says and nowhere else.
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    # json leaves these as they are, and some readers take them for line ends.
    for mark in "\x7f\x85\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return _without_tags(text)


def tagged(name: str, text: str) -> str:
    """Return text between two tags that nothing inside it can close."""
    return f"<{name}>\n{_without_tags(text.rstrip())}\n</{name}>"


def cut(text: str, limit: int) -> str:
    """Return text of at most limit characters; a mark says what is missing."""
    if len(text) <= limit:
        return text
    mark = f" [{len(text)} characters]"
    return text[: max(0, limit - len(mark))] + mark


def _without_tags(text: str) -> str:
    # Half a surrogate pair, which JSON may hold, cannot be sent.
    return text.replace("<", "\\u003c").encode("utf-8", "backslashreplace").decode("utf-8")
