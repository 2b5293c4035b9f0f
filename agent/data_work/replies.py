"""A teacher's reply: the JSON objects in it, whatever stands around them."""

from __future__ import annotations

import json
import re
from typing import Any, Final

__all__ = ["find_objects"]

_MAX_CHARS: Final = 300_000
_MAX_FAILURES: Final = 200
"""Brackets that begin no JSON, before the rest of a reply is given up: it bounds the time spent."""
_BRACKET: Final = re.compile(r"[\[{]")
_LIST_KEYS: Final = ("rows", "findings", "items", "examples", "proposals")


def find_objects(text: str) -> tuple[dict[str, Any], ...]:
    """Return the JSON objects of a reply in their order; prose, fences and broken parts are left out.

    Of a list that was cut off, the objects before the cut are found.
    """
    # A model that thinks aloud may draft there what it then does not say.
    text = text.rpartition("</think>")[2][:_MAX_CHARS]
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse)
    found: list[dict[str, Any]] = []
    position = failures = 0
    while failures < _MAX_FAILURES and (match := _BRACKET.search(text, position)):
        try:
            value, position = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position, failures = match.end(), failures + 1
        else:
            found += _objects_of(value)
    return tuple(found)


def _objects_of(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [entry for entry in value if isinstance(entry, dict)]
    for key in _LIST_KEYS:
        if isinstance(value.get(key), list):
            return [entry for entry in value[key] if isinstance(entry, dict)]
    return [value]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is given twice in one object")
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
