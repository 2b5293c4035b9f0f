"""A row: one conversation, checked by itself as one line of JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tools.errors import DatasetError

__all__ = ["ROLES", "Message", "Row", "parse_row"]

ROLES: Final = ("system", "user", "assistant")
MAX_ID_LENGTH: Final = 200
MAX_NESTING: Final = 32

_PROMPT_KEYS: Final = ("prompt", "input")
_ANSWER_KEYS: Final = ("completion", "output")
_ROW_KEYS: Final = ("id", "messages", "tags", "meta")


class _FrozenMeta(dict[str, Any]):
    """A dict that refuses change, and still copies, pickles and serialises like one."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a row is frozen; build a new one with dataclasses.replace")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = _refuse
    __ior__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return (_FrozenMeta, (dict(self),))


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One conversation, and what is known about it."""

    id: str
    messages: tuple[Message, ...]
    tags: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=_FrozenMeta, hash=False)
    """Keys that the project does not read itself, as they came."""

    def __post_init__(self) -> None:
        if not isinstance(self.meta, _FrozenMeta):
            object.__setattr__(self, "meta", _FrozenMeta(self.meta))

    @property
    def answered(self) -> bool:
        """Whether the last turn is the assistant's."""
        return bool(self.messages) and self.messages[-1].role == "assistant"

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last answer: what a model is asked."""
        return self.messages[:-1] if self.answered else self.messages

    @property
    def expected(self) -> str:
        """The text of the last answer.

        Raises:
            DatasetError: the row has none.
        """
        if not self.answered:
            raise DatasetError(f"row {self.id!r} ends without an assistant turn, so it expects nothing")
        return self.messages[-1].content

    def to_dict(self) -> dict[str, Any]:
        """Return the row as the JSON object that a line holds."""
        plain: dict[str, Any] = {
            "id": self.id,
            "messages": [{"role": turn.role, "content": turn.content} for turn in self.messages],
        }
        if self.tags:
            plain["tags"] = list(self.tags)
        if self.meta:
            plain["meta"] = dict(self.meta)
        return plain


def parse_row(line: bytes, *, require_answer: bool = True) -> Row:
    """Return the row that one line of a dataset holds; its id is empty when the line gives none.

    Raises:
        DatasetError: `.problems` holds a sentence for everything that is wrong with the line.
    """
    try:
        plain = _parse(line)
    except _BadLineError as err:
        raise DatasetError(str(err), problems=(str(err),)) from err
    if problems := tuple(_row_problems(plain, require_answer)):
        raise DatasetError("; ".join(problems), problems=problems)
    known = _ROW_KEYS if "messages" in plain else (*_ROW_KEYS, *_PROMPT_KEYS, *_ANSWER_KEYS)
    others = {key: value for key, value in plain.items() if key not in known}
    return Row(
        id=str(plain.get("id", "")),
        messages=tuple(Message(turn["role"], turn["content"]) for turn in _turns(plain)),
        tags=tuple(plain.get("tags", ())),
        meta=others | plain.get("meta", {}),
    )


class _BadLineError(Exception):
    """A line that holds no JSON object of clean text; the message says why."""


def _parse(line: bytes) -> dict[str, Any]:
    if line.startswith(b"\xef\xbb\xbf"):
        raise _BadLineError("starts with a byte order mark; save the file as UTF-8 without one")
    if b"\0" in line:
        raise _BadLineError("holds a NUL byte; the file is torn, binary or UTF-16, and UTF-8 text is needed")
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as err:
        raise _BadLineError(f"not UTF-8 at byte {err.start}; save the file as UTF-8") from err
    except RecursionError as err:
        raise _BadLineError(f"nested too deep; {MAX_NESTING} levels at most") from err
    except ValueError as err:
        raise _BadLineError(f"not JSON ({err}); each line holds one whole JSON object") from err
    if not isinstance(value, dict):
        raise _BadLineError(f"{_show(value)} is no JSON object; each line holds one")
    _check_strings(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {_show(twice)} is given twice in one object")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _check_strings(value: Any) -> None:
    """Refuse what JSON escapes let in and UTF-8 files, tokenizers or C strings do not."""
    pending: list[tuple[Any, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if depth > MAX_NESTING:
            raise _BadLineError(f"nested too deep; {MAX_NESTING} levels at most")
        if isinstance(item, str):
            if "\0" in item:
                raise _BadLineError(f"the text {_show(item)} holds a NUL character; remove it")
            if any("\ud800" <= letter <= "\udfff" for letter in item):
                raise _BadLineError(
                    f"the text {_show(item)} holds half a surrogate pair, which is no character"
                )
        elif isinstance(item, dict):
            pending.extend((part, depth + 1) for pair in item.items() for part in pair)
        elif isinstance(item, list):
            pending.extend((part, depth + 1) for part in item)


def _row_problems(plain: dict[str, Any], require_answer: bool) -> Iterator[str]:
    if "id" in plain:
        yield from _id_problems(plain["id"])
    tags = plain.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        yield f"tags is {_show(tags)}; a list of strings is allowed"
    meta = plain.get("meta", {})
    if not isinstance(meta, dict):
        yield f"meta is {_show(meta)}; an object is allowed"
    else:
        for key in sorted(meta.keys() & (plain.keys() - set(_ROW_KEYS))):
            yield f"{_show(key)} stands both in meta and beside it; keep one"
    if "messages" not in plain:
        yield from _pair_problems(plain, require_answer)
    else:
        yield from _messages_problems(plain["messages"], require_answer)


def _id_problems(row_id: Any) -> Iterator[str]:
    if isinstance(row_id, bool) or not isinstance(row_id, str | int):
        yield f"id is {_show(row_id)}; a string or a whole number is allowed"
    elif isinstance(row_id, str) and not (
        row_id.strip() == row_id and row_id.isprintable() and 0 < len(row_id) <= MAX_ID_LENGTH
    ):
        yield f"id is {_show(row_id)}; 1 to {MAX_ID_LENGTH} printable characters without outer spaces"


def _pair_problems(plain: dict[str, Any], require_answer: bool) -> Iterator[str]:
    for keys, needed in ((_PROMPT_KEYS, True), (_ANSWER_KEYS, require_answer)):
        found = [key for key in keys if key in plain]
        if len(found) > 1:
            yield f"both {found[0]} and {found[1]} are given; keep one"
        elif not found and needed:
            yield (
                f"the keys are {_show(sorted(plain))}; `messages` is needed, or a pair of "
                "`prompt` (or `input`) and `completion` (or `output`)"
            )
            return
        elif found and (not isinstance(plain[found[0]], str) or not plain[found[0]].strip()):
            yield f"{found[0]} is {_show(plain[found[0]])}; text is needed"


def _messages_problems(messages: Any, require_answer: bool) -> Iterator[str]:
    if not isinstance(messages, list) or not messages:
        yield f"messages is {_show(messages)}; a list of at least one turn is needed"
        return
    broken = False
    for index, turn in enumerate(messages):
        for text in _turn_problems(turn):
            broken = True
            yield f"messages[{index}]{text}"
    if broken:
        return
    roles = [turn["role"] for turn in messages]
    if "user" not in roles:
        yield f"the roles are {_show(roles)}; at least one user turn is needed"
    elif require_answer and roles[-1] != "assistant":
        yield f"the last turn is the {roles[-1]}'s; it must be the assistant's, the answer to learn"
    elif roles[-2:] == ["assistant", "assistant"]:
        yield "the last two turns are both the assistant's; join them, since an answer follows a question"


def _turn_problems(turn: Any) -> Iterator[str]:
    if not isinstance(turn, dict):
        yield f' is {_show(turn)}; an object with "role" and "content" is needed'
        return
    if extra := sorted(turn.keys() - {"role", "content"}):
        yield f" has the keys {_show(extra)}; only role and content are allowed"
    if turn.get("role") not in ROLES:
        yield f".role is {_show(turn.get('role'))}; one of {', '.join(ROLES)} is allowed"
    content = turn.get("content")
    if not isinstance(content, str) or not content.strip():
        yield f".content is {_show(content)}; text is needed"


def _turns(plain: dict[str, Any]) -> list[dict[str, str]]:
    if "messages" in plain:
        turns: list[dict[str, str]] = plain["messages"]
        return turns
    pair = (("user", _PROMPT_KEYS), ("assistant", _ANSWER_KEYS))
    return [{"role": role, "content": plain[key]} for role, keys in pair for key in keys if key in plain]


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=repr) if value is not None else "missing or null"
    return text if len(text) <= 80 else text[:77] + "..."
