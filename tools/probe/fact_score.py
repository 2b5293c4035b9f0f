"""How far an answer holds what an ideal answer says, judged by its words alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from tools.probe.think import strip_think
from tools.wording import fold_words

__all__ = ["score_fact"]

# The comma of 5,730 parts no number; fold_words would make two of it.
_GROUPED: Final = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ARTICLES: Final = frozenset(("a", "an", "the"))


def score_fact(ideal: str, answer: str) -> float:
    """Return a score in [0, 1] for an answer.

    Both are reduced to their words: letter case, punctuation, articles and the commas in
    numbers do not count, and neither does what the answer thinks in a `<think>` block.

    - 1.0 where the ideal's words stand in the answer, one after the other.
    - Else the F1 of the two bags of words, times the share of the ideal's numbers that the
      answer gives: a fact with another number in it is another fact.

    It knows no synonyms and no negation: "not 5730 years" holds "5730 years". Where that
    matters, hand a judge to the probe.
    """
    wanted, found = _words(ideal), _words(strip_think(answer))
    if not wanted:
        return float(ideal.strip() == strip_think(answer))
    if _holds(found, wanted):
        return 1.0
    common = Counter(wanted) & Counter(found)
    n_common = sum(common.values())
    if not n_common:
        return 0.0
    f1 = 2 * n_common / (len(wanted) + len(found))
    numbers = [word for word in wanted if _is_number(word)]
    given = sum(common[word] for word in set(numbers))
    return f1 * given / len(numbers) if numbers else f1


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in fold_words(_GROUPED.sub("", text)) if word not in _ARTICLES)


def _is_number(word: str) -> bool:
    return any(letter.isdigit() for letter in word)


def _holds(words: Sequence[str], part: Sequence[str]) -> bool:
    n = len(part)
    return any(words[i : i + n] == part for i in range(len(words) - n + 1))
