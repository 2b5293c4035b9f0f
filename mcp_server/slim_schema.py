"""JSON schemas with nothing in them that a model does not need: every client pays for them by the token."""

from __future__ import annotations

from typing import Any

__all__ = ["slim"]


def slim(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an equal schema without titles, null defaults and `anyOf` around what may be null."""
    return {key: _slim(value, key) for key, value in schema.items() if key not in ("title", "description")}


def _slim(value: Any, key: str = "") -> Any:
    if isinstance(value, list):
        return [_slim(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if key in ("properties", "$defs"):
        return {name: _slim(entry) for name, entry in value.items()}
    kept = {name: _slim(entry, name) for name, entry in value.items() if name != "title"}
    if kept.get("default", 0) is None:
        del kept["default"]
    options = kept.get("anyOf")
    if isinstance(options, list) and len(options) == 2 and {"type": "null"} in options:
        other = next(option for option in options if option != {"type": "null"})
        if isinstance(other.get("type"), str):
            del kept["anyOf"]
            kept = {**other, "type": [other["type"], "null"], **kept}
    return kept
