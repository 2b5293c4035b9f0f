"""JSON schemas with nothing in them that a model does not need: every client pays for them by the token."""

from __future__ import annotations

from typing import Any

__all__ = ["slim"]

_NULL = {"type": "null"}


def slim(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without titles, and of one type where a value may be missing.

    A fact that is not known is left out of a reply and never null, so that `null` need not be in
    the schema, where it takes a union that some clients cannot read.
    """
    return {key: _slim(value, key) for key, value in schema.items() if key not in ("title", "description")}


def _slim(value: Any, key: str = "") -> Any:
    if isinstance(value, list):
        return [_slim(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if key in ("properties", "$defs"):
        return {name: _slim(entry) for name, entry in value.items()}
    kept = {name: _slim(entry, name) for name, entry in value.items() if name != "title"}
    if "default" in kept and kept["default"] is None:
        del kept["default"]
    options = kept.get("anyOf")
    if isinstance(options, list) and len(options) == 2 and _NULL in options:
        del kept["anyOf"]
        kept = {**next(option for option in options if option != _NULL), **kept}
    return kept
