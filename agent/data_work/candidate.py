"""A candidate row: one object of a teacher's reply, checked as a line of a dataset is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from tools.errors import DatasetError
from tools.rows import Message, Row, parse_row

__all__ = ["read_candidate", "row_object"]

_MAX_TURNS: Final = 32
_MAX_TURN_CHARS: Final = 16_000
_TAG_CHARS: Final = 40


def read_candidate(item: Mapping[str, Any], row_id: str, meta: Mapping[str, Any]) -> Row:
    """Return the row that a teacher's object describes.

    The object holds `user` and `assistant`, or `messages`; an answer that is JSON may be given as
    an object. Whatever else it says of itself, an id or a meta among it, is not taken over.

    Raises:
        DatasetError: it is no row; the message says why.
    """
    try:
        line = json.dumps(
            {"id": row_id, "messages": _messages(item), "tags": _tags(item)}, allow_nan=False
        ).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as err:
        raise DatasetError(f"no JSON can hold it ({err})") from err
    row = parse_row(line)
    _check_size(row)
    if any(turn.role == "system" for turn in row.messages):
        raise DatasetError("it brings a system turn; the system prompt is the recipe's alone")
    return Row(row.id, _stripped(row.messages), row.tags, meta)


def row_object(row: Row) -> dict[str, Any]:
    """Return a row as it is shown to a teacher: in the form in which rows are asked for."""
    if [turn.role for turn in row.messages] == ["user", "assistant"]:
        return {"user": row.messages[0].content, "assistant": _shown_answer(row.expected)}
    return {"messages": [{"role": turn.role, "content": turn.content} for turn in row.messages]}


def _messages(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    if isinstance(item.get("messages"), list):
        return [
            {**turn, "content": _text(turn.get("content"))} if isinstance(turn, dict) else turn
            for turn in item["messages"]
        ]
    if "user" not in item or "assistant" not in item:
        raise DatasetError(f"its keys are {sorted(map(str, item))[:8]}; `user` and `assistant` are needed")
    return [
        {"role": "user", "content": item["user"]},
        {"role": "assistant", "content": _text(item["assistant"])},
    ]


def _text(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _tags(item: Mapping[str, Any]) -> list[str]:
    tags = item.get("tags")
    if not isinstance(tags, list):
        return []
    return [tag for tag in tags if isinstance(tag, str) and tag.isprintable() and len(tag) <= _TAG_CHARS][:8]


def _check_size(row: Row) -> None:
    longest = max(len(turn.content) for turn in row.messages)
    if len(row.messages) > _MAX_TURNS or longest > _MAX_TURN_CHARS:
        raise DatasetError(
            f"it has {len(row.messages)} turns, the longest of {longest} characters; "
            f"{_MAX_TURNS} turns of {_MAX_TURN_CHARS} at most"
        )


def _stripped(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(Message(turn.role, turn.content.strip()) for turn in messages)


def _shown_answer(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    # What a careless round trip would change is shown as the text that it is.
    return value if isinstance(value, dict) and json.dumps(value, ensure_ascii=False) == text else text
