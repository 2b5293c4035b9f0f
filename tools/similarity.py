"""A similarity join: all pairs of sets whose Jaccard index reaches a threshold, none missed."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["JaccardIndex", "character_grams", "numbered_words"]

# A product such as 0.7 * 10 is a hair over 7; without slack its ceiling would be 8.
_SLACK: Final = 1e-9
_GRAM: Final = 4


class JaccardIndex:
    """Finds the stored sets that are similar to a given one, exactly.

    Two sets of sizes a and b with a Jaccard index of at least t share one of the
    a - ceil(t a) + 1 rarest elements of the one and the b - ceil(t b) + 1 rarest of the other,
    so only those are looked up; every candidate is then counted in full.

    Source: Bayardo, Ma and Srikant 2007, Scaling up all pairs similarity search.
    """

    def __init__(self, sets: Sequence[frozenset[str]], *, threshold: float) -> None:
        self._threshold = threshold
        self._sets = sets
        self._frequency = Counter(element for members in sets for element in members)
        self._holders: dict[str, list[int]] = defaultdict(list)
        for index, members in enumerate(sets):
            for element in self._rarest(members):
                self._holders[element].append(index)

    def similar(self, members: frozenset[str]) -> Iterator[tuple[int, float]]:
        """Yield the index of each similar stored set, with the Jaccard index."""
        found = {index for element in self._rarest(members) for index in self._holders.get(element, ())}
        for index in sorted(found):
            other = self._sets[index]
            if min(len(members), len(other)) < self._threshold * max(len(members), len(other)) - _SLACK:
                continue
            shared = len(members & other)
            jaccard = shared / (len(members) + len(other) - shared)
            if jaccard >= self._threshold - _SLACK:
                yield index, jaccard

    def _rarest(self, members: frozenset[str]) -> list[str]:
        if not members:
            return []
        count = len(members) - math.ceil(self._threshold * len(members) - _SLACK) + 1
        return sorted(members, key=lambda element: (self._frequency[element], element))[:count]


def numbered_words(words: Sequence[str]) -> frozenset[str]:
    """Return the words as a set in which a repeated word counts as often as it stands there."""
    seen: Counter[str] = Counter()
    numbered = []
    for word in words:
        seen[word] += 1
        numbered.append(f"{word} {seen[word]}")
    return frozenset(numbered)


def character_grams(words: Sequence[str]) -> frozenset[str]:
    """Return every run of four characters of the words, with one space between and around them.

    Three would be enough to see a typing error, and take twice as long: too many texts share them.
    """
    text = f" {' '.join(words)} "
    return frozenset(text[start : start + _GRAM] for start in range(len(text) - _GRAM + 1))
