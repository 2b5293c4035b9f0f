"""One answered question of a reasoning probe, and the summary of many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tools.errors import ProbeError
from tools.probe.asking import Response
from tools.probe.questions import ProbeQuestion
from tools.probe.think import CountTokens, count_char_quarters, is_cut_off, parse_think

__all__ = [
    "ProbeRow",
    "ProbeSummary",
    "failed_row",
    "row_from_dict",
    "row_from_response",
    "row_to_dict",
    "summarize_rows",
]

_NEEDED_KEYS: Final = ("qid", "category", "response", "has_think")


@dataclass(frozen=True)
class ProbeRow:
    """What a model answered to one question."""

    qid: str
    category: str
    response: str
    has_think: bool
    think_n_tok: int | None
    """Length of the chain: None without a block, 0 for an empty one."""
    think_text: str
    wall_seconds: float = 0.0
    """For a batch, its time divided by its questions."""
    truncated: bool = field(default=False, kw_only=True)
    """The last chain has no end: the budget was too small for it."""
    error: str | None = field(default=None, kw_only=True)
    """Why there is no response; such a row is in no aggregate."""

    @property
    def chain_tokens(self) -> int:
        """Length of the chain, counted by quarters of characters where nothing else was."""
        return count_char_quarters(self.think_text) if self.think_n_tok is None else self.think_n_tok


@dataclass(frozen=True)
class ProbeSummary:
    """Aggregate over rows."""

    think_presence_rate: float
    """Share of the rows with a think block."""
    think_token_length: float
    """Mean length of the chains, over the rows that have a block."""
    n: int


def summarize_rows(rows: Iterable[ProbeRow]) -> ProbeSummary:
    """Aggregate rows, those without a response left out. No rows: zeros, with n = 0."""
    answered = [row for row in rows if row.error is None]
    chains = [row.chain_tokens for row in answered if row.has_think]
    return ProbeSummary(
        think_presence_rate=len(chains) / len(answered) if answered else 0.0,
        think_token_length=sum(chains) / len(chains) if chains else 0.0,
        n=len(answered),
    )


def row_from_response(
    question: ProbeQuestion,
    response: Response,
    *,
    wall_seconds: float = 0.0,
    count_tokens: CountTokens = count_char_quarters,
) -> ProbeRow:
    """Parse a response into its row."""
    # A lone surrogate could not be written to a UTF-8 file, hours after it was generated.
    text = response.text.encode("utf-8", "replace").decode("utf-8")
    has_think, n_tokens, chain = parse_think(text, count_tokens=count_tokens)
    return ProbeRow(
        question.qid,
        question.category,
        text,
        has_think,
        n_tokens,
        chain,
        wall_seconds,
        truncated=not response.is_complete and is_cut_off(text),
    )


def failed_row(question: ProbeQuestion, error: BaseException, *, wall_seconds: float = 0.0) -> ProbeRow:
    """Return the row of a question that no response came to."""
    reason = f"{type(error).__name__}: {error}".encode("utf-8", "replace").decode("utf-8")
    return ProbeRow(question.qid, question.category, "", False, None, "", wall_seconds, error=reason)


def row_to_dict(row: ProbeRow) -> dict[str, Any]:
    """Return a row as JSON; `error` only where there is one."""
    plain: dict[str, Any] = {
        "qid": row.qid,
        "category": row.category,
        "response": row.response,
        "has_think": row.has_think,
        "think_n_tok": row.think_n_tok,
        "think_text": row.think_text,
        "wall_seconds": row.wall_seconds,
        "truncated": row.truncated,
    }
    if row.error is not None:
        plain["error"] = row.error
    return plain


def row_from_dict(plain: Any, where: str) -> ProbeRow:
    """Read a row from JSON. Where the file does not say, the response tells what was cut off.

    Args:
        where: Names the row in an error.
    Raises:
        ProbeError: a needed key is missing, or a value is of the wrong type.
    """
    if not isinstance(plain, Mapping):
        raise ProbeError(f"{where} is {plain!r:.80}; an object is needed")
    missing = [key for key in _NEEDED_KEYS if key not in plain]
    if missing:
        raise ProbeError(f"{where} lacks {missing}; {list(_NEEDED_KEYS)} are needed")
    has_think, response = plain["has_think"], _text(plain, "response", where)
    if not isinstance(has_think, bool):
        raise ProbeError(f"{where}: has_think is {has_think!r:.80}; true or false is needed")
    chain = _text(plain, "think_text", where, default=parse_think(response)[2])
    n_tokens = plain.get("think_n_tok")
    if has_think and n_tokens is None:
        n_tokens = count_char_quarters(chain)
    if n_tokens is not None and (isinstance(n_tokens, bool) or not isinstance(n_tokens, int) or n_tokens < 0):
        raise ProbeError(f"{where}: think_n_tok is {n_tokens!r:.80}; a count, 0 or more, or null is needed")
    error = plain.get("error")
    return ProbeRow(
        str(plain["qid"]),
        _text(plain, "category", where),
        response,
        has_think,
        n_tokens,
        chain,
        read_number(plain.get("wall_seconds"), 0.0, f"{where}: wall_seconds"),
        truncated=bool(plain.get("truncated", is_cut_off(response))),
        error=None if error is None else str(error),
    )


def read_number(value: Any, default: float, where: str) -> float:
    """Return a number that JSON gave, or the default for null or nothing.

    Raises:
        ProbeError: it is no finite number.
    """
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ProbeError(f"{where} is {value!r:.80}; a finite number is needed")
    return float(value)


def _text(plain: Mapping[str, Any], key: str, where: str, *, default: str | None = None) -> str:
    value = plain.get(key)
    if value is None:
        value = default
    if not isinstance(value, str):
        raise ProbeError(f"{where}: {key} is {value!r:.80}; a text is needed")
    return value
