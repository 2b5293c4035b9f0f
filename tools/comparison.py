"""The paired comparison of two recipes over the same items, with its interval.

A verdict is about recipes, and three things make a score differ that are no property of a
recipe: which items happen to be asked, the noise of one answer, the luck of a training seed.
The standard error holds them all:

    d_i  = mean over seeds of the candidate on item i  -  the same of the base
    SE²  = var(d_i) / n  +  var(seed means of the candidate) / S_c  +  the same of the base / S_b

Pairing by item takes out what makes an item hard for both. The seed terms count a part of the
answers' noise twice, which errs on the side of doubt; taking it out again would need an
estimate far noisier than itself. With one seed the seed terms are unknown: they are left out,
and `seed_variance_known` says so.

Two choices keep the interval honest where the textbook's fails, and `benchmarks/verdict_rates.py`
measures both:

- Two pseudo-items join the items, one that the candidate wins outright (d = 1) and one that it
  loses (d = -1). On 0/1 scores of one seed this is the adjusted Wald interval of Bonett and
  Price (2012). On any score in [0, 1] it keeps a 95% interval at 2.8 / n or more to either side,
  near the rule of three, so that "no item differed" never reads as "no item can differ".
- The seed terms together have min(S) - 1 degrees of freedom, the fewest that Welch's formula
  can give them; Satterthwaite's joins them with the items' n + 1. Few seeds that agree may do
  so by chance, so the sum is held to 6 (min(S) - 1)², the most at which the simulation keeps
  its promise for seeds whose scores spread by up to 5 points. Two seeds are little: a third
  narrows the interval by a third where seeds agree, and to a half where they do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tools.errors import EvidenceError
from tools.evaluation.scores import ScoreRow
from tools.student_t import t_quantile, two_sided_p

__all__ = ["Comparison", "Interval", "Scores", "compare", "corrected_level", "interval"]

_NAMED_ITEMS: Final = 5
_FEW_SEEDS_DF: Final = 6


@dataclass(frozen=True)
class Scores:
    """All scores of one recipe on one split: one row of values per training seed.

    Raises:
        EvidenceError: no item or no seed, a repeated one, a ragged table, or a value that is
            not a number in [0, 1].
    """

    item_ids: tuple[str, ...]
    seeds: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    """Shape (n_seeds, n_items)."""

    def __post_init__(self) -> None:
        if not self.item_ids or not self.seeds:
            raise EvidenceError("there are no scores; evaluate the recipe first")
        for name, keys in (("item", self.item_ids), ("seed", self.seeds)):
            if len(set(keys)) != len(keys):
                twice = sorted({str(key) for key in keys if keys.count(key) > 1})
                raise EvidenceError(f"{name}s scored twice: {_some(twice)}")
        if len(self.values) != len(self.seeds):
            raise EvidenceError(f"{len(self.values)} rows of scores for {len(self.seeds)} seeds")
        for seed, row in zip(self.seeds, self.values, strict=True):
            if len(row) != len(self.item_ids):
                raise EvidenceError(f"seed {seed}: {len(row)} scores for {len(self.item_ids)} items")
            bad = [item for item, value in zip(self.item_ids, row, strict=True) if not _is_score(value)]
            if bad:
                raise EvidenceError(f"seed {seed}: no score in [0, 1] for items {_some(bad)}")

    @classmethod
    def from_rows(cls, rows: Iterable[ScoreRow]) -> Scores:
        """Return the table of rows, in any order of theirs.

        Raises:
            EvidenceError: an item scored twice for a seed, or by some of the seeds only.
        """
        table: dict[int, dict[str, float]] = {}
        for row in rows:
            of_seed = table.setdefault(row.seed, {})
            if row.item_id in of_seed:
                raise EvidenceError(f"item {row.item_id!r} is scored twice for seed {row.seed}")
            of_seed[row.item_id] = row.score
        items = sorted({item for of_seed in table.values() for item in of_seed})
        for seed, of_seed in sorted(table.items()):
            missing = [item for item in items if item not in of_seed]
            if missing:
                raise EvidenceError(f"seed {seed} has no score for items {_some(missing)}; evaluate it again")
        values = tuple(tuple(table[seed][item] for item in items) for seed in sorted(table))
        return cls(tuple(items), tuple(sorted(table)), values)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def n_seeds(self) -> int:
        return len(self.seeds)

    @property
    def mean(self) -> float:
        """Mean over items and seeds."""
        return _mean([value for row in self.values for value in row])

    def item_means(self) -> dict[str, float]:
        """Return the mean over seeds of every item."""
        columns = zip(*self.values, strict=True)
        return {item: _mean(column) for item, column in zip(self.item_ids, columns, strict=True)}


@dataclass(frozen=True)
class Comparison:
    """The gain of a candidate over the base, in score units, with its two-sided interval."""

    gain: float
    low: float
    high: float
    level: float
    """The level of this interval, corrections included."""
    n_items: int
    n_seeds_base: int
    n_seeds_candidate: int
    standard_error: float
    degrees_of_freedom: float
    base_mean: float
    candidate_mean: float
    p_value: float
    """Two-sided, against a gain of 0, before any correction."""
    seed_variance_known: bool
    """False where either side has one seed: its luck in training is not in the interval."""


@dataclass(frozen=True)
class Interval:
    """The mean score of one recipe with its two-sided interval."""

    mean: float
    low: float
    high: float
    level: float
    n_items: int
    n_seeds: int
    seed_variance_known: bool


def compare(base: Scores, candidate: Scores, *, level: float = 0.95) -> Comparison:
    """Return the mean paired gain of candidate over base, with its interval.

    Args:
        base: Scores of the incumbent.
        candidate: Scores of the candidate on the same items, in any order. Its seeds need not
            be the base's.
        level: Two-sided confidence, in (0, 1); `corrected_level` lowers the risk for many looks.
    Raises:
        EvidenceError: fewer than two items, the items differ, or level is out of range.
    Source: the pairing and the clustering by item, Miller 2024, arXiv:2411.00640; the
        pseudo-items, Bonett and Price 2012, doi:10.3102/1076998611411915; the degrees of
        freedom, Satterthwaite 1946, doi:10.2307/3002019.
    """
    _check_level(level)
    _check_items(base, candidate)
    before, after = base.item_means(), candidate.item_means()
    gains = [after[item] - before[item] for item in base.item_ids]
    gain = _mean(gains)
    estimate = _estimate([*gains, 1.0, -1.0], (base, candidate))
    low, high = estimate.bounds(level, around=gain, floor=-1.0)
    return Comparison(
        gain=gain,
        low=low,
        high=high,
        level=level,
        n_items=base.n_items,
        n_seeds_base=base.n_seeds,
        n_seeds_candidate=candidate.n_seeds,
        standard_error=estimate.standard_error,
        degrees_of_freedom=estimate.degrees_of_freedom,
        base_mean=base.mean,
        candidate_mean=candidate.mean,
        p_value=two_sided_p(estimate.centre / estimate.standard_error, estimate.degrees_of_freedom),
        seed_variance_known=estimate.seed_variance_known,
    )


def interval(scores: Scores, level: float = 0.95) -> Interval:
    """Return the mean of one recipe's scores with its interval, for tables and plots.

    Two of these may overlap while the paired gain is clear: a verdict comes from `compare`.

    Raises:
        EvidenceError: fewer than two items, or level is out of range.
    Source: two pseudo-items each of 0 and of 1, Agresti and Coull 1998, doi:10.2307/2685469.
    """
    _check_level(level)
    if scores.n_items < 2:
        raise EvidenceError("one item has no interval; score at least two")
    mean = scores.mean
    estimate = _estimate([*scores.item_means().values(), 0.0, 0.0, 1.0, 1.0], (scores,))
    low, high = estimate.bounds(level, around=mean, floor=0.0)
    return Interval(mean, low, high, level, scores.n_items, scores.n_seeds, estimate.seed_variance_known)


def corrected_level(level: float, n_candidates: int, n_looks: int = 1) -> float:
    """Return the level at which each interval must be taken so that all hold together at level.

    Bonferroni's correction: right whatever ties the candidates, who share a base and items.

    Args:
        n_candidates: Candidates tried in the bakeoff, those that failed on the way included.
        n_looks: Times that a candidate is ruled on, as further seeds are bought.
    Raises:
        EvidenceError: level is outside (0, 1), or a count is below 1.
    """
    _check_level(level)
    if n_candidates < 1 or n_looks < 1:
        raise EvidenceError(f"n_candidates is {n_candidates}, n_looks is {n_looks}; allowed: 1 or more")
    return 1.0 - (1.0 - level) / (n_candidates * n_looks)


@dataclass(frozen=True)
class _Estimate:
    centre: float
    standard_error: float
    degrees_of_freedom: float
    seed_variance_known: bool

    def bounds(self, level: float, *, around: float, floor: float) -> tuple[float, float]:
        """Return low and high, within [floor, 1] and never past the raw mean."""
        reach = t_quantile(level, self.degrees_of_freedom) * self.standard_error
        low, high = self.centre - reach, self.centre + reach
        # The pseudo-items pull the centre towards the middle; at a low level the raw mean
        # could fall out of its own interval.
        return max(floor, min(low, around)), min(1.0, max(high, around))


def _estimate(items: Sequence[float], tables: Sequence[Scores]) -> _Estimate:
    """Join the spread of items, pseudo-items included, with that of the seeds of tables."""
    item_part, item_df = _variance(items) / len(items), len(items) - 1
    # The spread of one seed is unknown, not 0: its table adds no term and is told of instead.
    known = [table for table in tables if table.n_seeds > 1]
    seed_part = math.fsum(_seed_variance(table) / table.n_seeds for table in known)
    total = item_part + seed_part
    degrees_of_freedom = float(item_df)
    if known:
        seed_df = min(table.n_seeds for table in known) - 1
        joined = total**2 / (item_part**2 / item_df + seed_part**2 / seed_df)
        degrees_of_freedom = min(joined, _FEW_SEEDS_DF * seed_df**2)
    return _Estimate(
        centre=_mean(items),
        standard_error=math.sqrt(total),
        degrees_of_freedom=degrees_of_freedom,
        seed_variance_known=len(known) == len(tables),
    )


def _seed_variance(table: Scores) -> float:
    return _variance([_mean(row) for row in table.values])


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise EvidenceError(f"level is {level!r}; allowed: above 0 and below 1, e.g. 0.95")


def _check_items(base: Scores, candidate: Scores) -> None:
    here, there = set(base.item_ids), set(candidate.item_ids)
    if here != there:
        parts = []
        if here - there:
            parts.append(f"only the base has {_some(sorted(here - there))}")
        if there - here:
            parts.append(f"only the candidate has {_some(sorted(there - here))}")
        raise EvidenceError(
            f"the two were scored on different items: {'; '.join(parts)}; score both on one split"
        )
    if len(here) < 2:
        raise EvidenceError("one item has no interval; score both recipes on at least two")


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and 0.0 <= value <= 1.0


def _mean(values: Sequence[float]) -> float:
    # fsum rounds once, so that neither the order nor the sign of the values can show.
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED_ITEMS} more" if len(names) > _NAMED_ITEMS else ""
    return ", ".join(repr(name) for name in names[:_NAMED_ITEMS]) + more
