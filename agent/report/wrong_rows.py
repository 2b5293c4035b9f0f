"""Which dev rows a recipe still gets wrong, and which it mended or broke."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tools.evaluation.scores import ScoreRow, error_kind

__all__ = ["WrongGroup", "WrongItem", "WrongRows", "find_wrong_rows"]

_NO_KIND = "partly right"


@dataclass(frozen=True)
class WrongItem:
    """A dev row that some seed of the recipe answers wrongly."""

    row: ScoreRow
    """Its lowest answer."""
    n_wrong: int
    n_seeds: int
    is_new: bool
    """The incumbent had it right on every seed."""


@dataclass(frozen=True)
class WrongGroup:
    """Rows that went wrong the same way."""

    kind: str
    items: tuple[WrongItem, ...]
    n_before: int | None
    """Items of this kind that the incumbent has; None where its rows are unknown."""


@dataclass(frozen=True)
class WrongRows:
    """All dev rows that a recipe gets wrong, the most frequent kind first."""

    groups: tuple[WrongGroup, ...]
    n_items: int
    n_seeds: int
    """Most answers that an item has."""
    mended: tuple[str, ...]
    """Items that the incumbent had wrong on some seed and the recipe has right on every one."""
    broken: tuple[str, ...]
    """The other way round."""

    @property
    def n_wrong(self) -> int:
        return sum(len(group.items) for group in self.groups)


def find_wrong_rows(rows: Sequence[ScoreRow], before: Sequence[ScoreRow]) -> WrongRows:
    """Group the wrong rows of a recipe by the kind of their error.

    Args:
        rows: The recipe's dev rows, all seeds.
        before: The incumbent's; none where unknown, or where the recipe is the incumbent.
    """
    mine, theirs = _by_item(rows), _by_item(before)
    was_right = {item for item, found in theirs.items() if not _wrong(found)}
    wrong = {item: lowest for item, found in mine.items() if (lowest := _wrong(found))}
    kinds_before = Counter(_kind(_lowest(bad)) for found in theirs.values() if (bad := _wrong(found)))
    grouped: dict[str, list[WrongItem]] = {}
    for item, bad in sorted(wrong.items()):
        found = WrongItem(_lowest(bad), len(bad), len(mine[item]), item in was_right)
        grouped.setdefault(_kind(found.row), []).append(found)
    return WrongRows(
        groups=tuple(
            WrongGroup(kind, tuple(items), kinds_before[kind] if before else None)
            for kind, items in sorted(grouped.items(), key=lambda pair: (-len(pair[1]), pair[0]))
        ),
        n_items=len(mine),
        n_seeds=max(map(len, mine.values()), default=0),
        mended=tuple(sorted(item for item in theirs.keys() & mine.keys() - was_right if item not in wrong)),
        broken=tuple(sorted(was_right & wrong.keys())),
    )


def _by_item(rows: Iterable[ScoreRow]) -> dict[str, list[ScoreRow]]:
    found: dict[str, list[ScoreRow]] = {}
    for row in rows:
        found.setdefault(row.item_id, []).append(row)
    return found


def _wrong(rows: Iterable[ScoreRow]) -> list[ScoreRow]:
    return [row for row in rows if row.score < 1.0]


def _lowest(rows: Iterable[ScoreRow]) -> ScoreRow:
    return min(rows, key=lambda row: (row.score, row.seed))


def _kind(row: ScoreRow) -> str:
    return error_kind(row.error) if row.error else _NO_KIND
