"""A leak: a training row that is tied to a row by which a recipe is judged.

What the user says is compared, in four ways, the surest first:

- exact: the same text.
- normalized: the same but for case, punctuation, spaces and the form of the characters.
- ngram: half of the judged row's words, or a very long run of them, stand in the training row
  in the same order, at least `ngram` words at a stretch.
- near_duplicate: the words, or the runs of four characters, overlap to `threshold` or more.

A row shorter than `ngram` words is compared in the first two ways alone. "go to B4" and "go to
B5" share most of what they hold and are two different rows; so do any two short commands, and a
gate that fired on them would leave nothing to train on. From eight words on, a text that differs
in one word is taken for a copy, whatever the word.

A stretch of `ngram` words that many judged rows have in common is a template's wording rather
than anyone's content, and is left out of the last two comparisons. It is counted on the judged
side alone: no training row can switch the gate off.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tools.dataset import Dataset
from tools.errors import DatasetError, LeakError
from tools.rows import Row
from tools.similarity import JaccardIndex, character_grams, numbered_words
from tools.wording import fold_words, squeeze_words

__all__ = ["Leak", "LeakGate", "LeakKind", "check_leaks", "find_leaks"]

LeakKind = Literal["exact", "normalized", "ngram", "near_duplicate"]

NGRAM: Final = 8
THRESHOLD: Final = 0.75
LEAKS_SHOWN: Final = 50

_SHARE: Final = 0.5
_LONG_RUN: Final = 4
"""A shared run of this many times `ngram` words is a leak however long the judged row is."""
_TEMPLATE_ROWS: Final = 3
_TEMPLATE_SHARE: Final = 0.02

_Gram = tuple[str, ...]


@dataclass(frozen=True)
class Leak:
    """A training row and the judged row that it gives away."""

    kind: LeakKind
    train_id: str
    split: str
    judged_id: str
    train_text: str
    judged_text: str
    similarity: float
    """In (0, 1]: 1 for the first two kinds, then the judged words covered or the Jaccard index."""

    def __str__(self) -> str:
        return (
            f"{self.kind} ({self.similarity:.2f}): train row {self.train_id!r} {_short(self.train_text)} "
            f"~ {self.split} row {self.judged_id!r} {_short(self.judged_text)}"
        )


def find_leaks(
    train: Dataset,
    judged: Mapping[str, Dataset],
    *,
    ngram: int = NGRAM,
    threshold: float = THRESHOLD,
) -> tuple[Leak, ...]:
    """Return every pair of a training row and a judged row that are tied, each pair once.

    Args:
        train: Rows to learn from.
        judged: Datasets by the name of their split.
        ngram: Words of a shared stretch, and the length from which a row is compared loosely.
        threshold: Jaccard index from which two rows are near duplicates, in (0, 1].
    Raises:
        DatasetError: ngram or threshold is outside its range.
    """
    return LeakGate(judged, ngram=ngram, threshold=threshold).find(train)


def check_leaks(
    train: Dataset,
    judged: Mapping[str, Dataset],
    *,
    ngram: int = NGRAM,
    threshold: float = THRESHOLD,
) -> None:
    """Refuse training rows that are tied to a judged split.

    Raises:
        LeakError: shows the pairs; `.problems` holds a sentence for each.
    """
    leaks = find_leaks(train, judged, ngram=ngram, threshold=threshold)
    if not leaks:
        return
    rows = len({leak.train_id for leak in leaks})
    shown = "\n".join(f"  {leak}" for leak in leaks[:LEAKS_SHOWN])
    rest = len(leaks) - LEAKS_SHOWN
    more = f"\n  and {rest} more pairs" if rest > 0 else ""
    raise LeakError(
        f"{train.path}: {rows} of {len(train)} training rows are tied to rows that judge a result; take "
        f"them out of the training data, never out of the judged splits:\n{shown}{more}",
        problems=tuple(str(leak) for leak in leaks),
    )


@dataclass(frozen=True)
class _Item:
    """A row with what is compared of it."""

    row_id: str
    split: str
    text: str
    key: str
    words: tuple[str, ...]


class LeakGate:
    """The judged rows, indexed once, so that training rows can pass by as they come.

    Args:
        judged, ngram, threshold: As for `find_leaks`.
    Raises:
        DatasetError: ngram or threshold is outside its range.
    """

    def __init__(
        self, judged: Mapping[str, Dataset], *, ngram: int = NGRAM, threshold: float = THRESHOLD
    ) -> None:
        if ngram < 2 or not 0 < threshold <= 1:
            raise DatasetError(
                f"ngram is {ngram} and threshold {threshold}; a whole number from 2, and a number in (0, 1], "
                "are allowed"
            )
        self._ngram = ngram
        self._items = [_item(row, split) for split, dataset in judged.items() for row in dataset]
        self._template = _template_grams(self._items, ngram)
        self._cores = [self._core(item.words) for item in self._items]
        self._by_text = _positions(item.text for item in self._items)
        self._by_key = _positions(item.key for item in self._items)
        self._by_gram: dict[_Gram, list[tuple[int, int]]] = defaultdict(list)
        for index, core in enumerate(self._cores):
            for place, gram in enumerate(_grams(core, ngram)):
                self._by_gram[gram].append((index, place))
        self._word_index = JaccardIndex([numbered_words(core) for core in self._cores], threshold=threshold)
        self._character_index = JaccardIndex(
            [character_grams(core) if core else frozenset() for core in self._cores], threshold=threshold
        )

    def find(self, rows: Iterable[Row]) -> tuple[Leak, ...]:
        """Return every pair of a training row and a judged row that are tied, each pair once."""
        return tuple(leak for row in rows for leak in self._leaks_of(row))

    def _leaks_of(self, row: Row) -> Iterator[Leak]:
        item = _item(row, "train")
        found: dict[int, tuple[LeakKind, float]] = {}
        for index in self._by_text.get(item.text, ()):
            found.setdefault(index, ("exact", 1.0))
        for index in self._by_key.get(item.key, ()) if item.key else ():
            found.setdefault(index, ("normalized", 1.0))
        core = self._core(item.words)
        for index, share in self._shared_stretches(core):
            found.setdefault(index, ("ngram", share))
        for index, similarity in self._near_duplicates(core):
            found.setdefault(index, ("near_duplicate", similarity))
        for index, (kind, similarity) in sorted(found.items()):
            other = self._items[index]
            yield Leak(kind, row.id, other.split, other.row_id, item.text, other.text, similarity)

    def _core(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """Return the words outside template stretches, or nothing when too few are left."""
        shared: set[int] = set()
        for place, gram in enumerate(_grams(words, self._ngram)):
            if gram in self._template:
                shared.update(range(place, place + self._ngram))
        core = tuple(word for place, word in enumerate(words) if place not in shared)
        return core if len(core) >= self._ngram else ()

    def _shared_stretches(self, core: tuple[str, ...]) -> Iterator[tuple[int, float]]:
        places: dict[int, set[int]] = defaultdict(set)
        for gram in _grams(core, self._ngram):
            for index, place in self._by_gram.get(gram, ()):
                places[index].add(place)
        for index, starts in places.items():
            covered = {start + step for start in starts for step in range(self._ngram)}
            share = len(covered) / len(self._cores[index])
            if share >= _SHARE or _longest_run(covered) >= _LONG_RUN * self._ngram:
                yield index, share

    def _near_duplicates(self, core: tuple[str, ...]) -> Iterator[tuple[int, float]]:
        if not core:
            return
        best = dict(self._word_index.similar(numbered_words(core)))
        for index, similarity in self._character_index.similar(character_grams(core)):
            best[index] = max(similarity, best.get(index, 0.0))
        yield from best.items()


def _item(row: Row, split: str) -> _Item:
    text = "\n".join(turn.content for turn in row.messages if turn.role == "user")
    words = fold_words(text)
    return _Item(row.id, split, text, squeeze_words(words), words)


def _grams(words: Sequence[str], size: int) -> Iterator[_Gram]:
    return (tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def _template_grams(items: Sequence[_Item], size: int) -> frozenset[_Gram]:
    # Copies of one row are not a template, so each wording counts once.
    distinct = {item.key: item.words for item in items}
    counts = Counter(gram for words in distinct.values() for gram in set(_grams(words, size)))
    least = max(_TEMPLATE_ROWS, math.ceil(_TEMPLATE_SHARE * len(distinct)))
    return frozenset(gram for gram, count in counts.items() if count >= least)


def _positions(values: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for index, value in enumerate(values):
        found[value].append(index)
    return found


def _longest_run(places: set[int]) -> int:
    longest = run = 0
    for place in sorted(places):
        run = run + 1 if place - 1 in places else 1
        longest = max(longest, run)
    return longest


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:117] + "...")
