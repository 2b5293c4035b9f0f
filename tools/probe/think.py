"""The `<think>` block of a response: the reasoning that a model writes before its answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

__all__ = [
    "CHAR_QUARTER",
    "THINK_REGEX",
    "CountTokens",
    "count_char_quarters",
    "is_cut_off",
    "parse_think",
    "strip_think",
]

THINK_REGEX: Final[re.Pattern[str]] = re.compile(r"<think>(.*?)</think>", re.DOTALL)
"""A block with its text as group 1, for callers that parse responses themselves.

On many openings without an end it takes quadratic time; `parse_think` does not.
"""

CHAR_QUARTER: Final = "characters/4"
"""The name of the default way to count: a quarter of the characters, rounded down."""

CountTokens = Callable[[str], int]

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"


@dataclass(frozen=True)
class _Block:
    start: int
    end: int
    """Behind the closing tag; the text's length where there is none."""
    text: str
    is_closed: bool


def count_char_quarters(text: str) -> int:
    """Return about how many tokens a text has: a quarter of its characters, rounded down."""
    return len(text) // 4


def parse_think(
    response: str, *, count_tokens: CountTokens = count_char_quarters
) -> tuple[bool, int | None, str]:
    """Return whether a response has a think block, how long its chain is, and the chain.

    Of several blocks the longest counts: some models open with an empty one before the real
    chain. White space around a chain belongs to no chain.

    Args:
        count_tokens: A tokenizer's count where one is at hand.
    Returns:
        has_think, think_n_tok (None without a block, 0 for an empty one), think_text.
    """
    chains = [block.text for block in _blocks(response) if block.is_closed]
    if not chains:
        return False, None, ""
    chain = max(chains, key=len)
    return True, count_tokens(chain) if chain else 0, chain


def is_cut_off(response: str) -> bool:
    """Whether the last chain of a response has no end: the token budget was too small for it."""
    return any(not block.is_closed for block in _blocks(response))


def strip_think(response: str) -> str:
    """Return what a response says outside its chains, one that was cut off included."""
    parts, position = [], 0
    for block in _blocks(response):
        parts.append(response[position : block.start])
        position = block.end
    return "".join((*parts, response[position:])).strip()


def _blocks(response: str) -> Iterator[_Block]:
    """Yield what THINK_REGEX would find, in linear time, and a last block without an end."""
    position = 0
    while (start := response.find(_OPEN, position)) >= 0:
        inner = start + len(_OPEN)
        close = response.find(_CLOSE, inner)
        if close < 0:
            yield _Block(start, len(response), response[inner:].strip(), is_closed=False)
            return
        position = close + len(_CLOSE)
        yield _Block(start, position, response[inner:close].strip(), is_closed=True)
