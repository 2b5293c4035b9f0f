"""Successive halving: after a part of their steps the worst candidates leave the search.

The dev score decides. Early on, when hardly an answer is right yet, many scores are equal; then
the loss of the expected answers does, which tells who is on the way.

Every candidate is brought to a rung before any is cut there: on one device nobody idles
meanwhile, since the others use its room, and whoever comes first has no advantage. Who is cut
is a function of the scores alone, and those lie in the checkpoints, so that a search that was
killed takes the same decisions again.

Source: Jamieson and Talwalkar 2016, arXiv:1502.07943; the asynchronous form, which needs many
devices to pay, is Li et al. 2018, arXiv:1810.05934.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tools.errors import TrainError

__all__ = ["Cut", "Halving", "Standing", "cut"]


@dataclass(frozen=True)
class Halving:
    """When candidates are compared, and how many of them go on."""

    rungs: tuple[float, ...] = (0.25, 0.5)
    """Parts of each candidate's own steps, rising, above 0 and below 1."""
    keep: float = 0.5
    """Part of the candidates that goes on from a rung, above 0 and below 1, rounded up."""

    def check(self) -> None:
        """Raise TrainError unless the rungs rise between 0 and 1, and keep lies there too."""
        rising = all(a < b for a, b in zip(self.rungs, self.rungs[1:], strict=False))
        if not self.rungs or not rising or not (self.rungs[0] > 0 and self.rungs[-1] < 1):
            raise TrainError(f"search.rungs is {list(self.rungs)}; it must rise, above 0 and below 1")
        if not 0 < self.keep < 1:
            raise TrainError(f"search.keep is {self.keep}; it must lie above 0 and below 1")

    def steps(self, total_steps: int) -> tuple[int, ...]:
        """Return the steps of the rungs of a candidate with total_steps."""
        return tuple(max(1, math.ceil(rung * total_steps)) for rung in self.rungs)


@dataclass(frozen=True)
class Standing:
    """How a candidate did on the dev rows at a rung."""

    score: float
    loss: float | None = None
    """Mean over the rows of the loss of the expected answer; None is unknown, and worse than any."""

    @property
    def order(self) -> tuple[float, float]:
        """Larger is better."""
        is_known = self.loss is not None and math.isfinite(self.loss)
        return (self.score, -self.loss if is_known and self.loss is not None else -math.inf)


@dataclass(frozen=True)
class Cut:
    """Who goes on from a rung."""

    kept: frozenset[str]
    last: Standing
    """The worst that went on."""

    def describe(self, standing: Standing, step: int, total_steps: int, n_items: int) -> str:
        """Say why a candidate with a worse standing left."""
        found, limit = f"dev score {standing.score:.3f}", f"{self.last.score:.3f} or more"
        if standing.score == self.last.score:
            found += " and loss " + ("unknown" if standing.loss is None else f"{standing.loss:.3f}")
            limit = f"the same score and a loss of {self.last.loss:.3f} or less"
        return (
            f"left the search after {step} of {total_steps} steps: {found} on {n_items} rows; "
            f"the {len(self.kept)} that went on have {limit}"
        )


def cut(standings: Mapping[str, Standing], keep: float) -> Cut:
    """Keep the best part of the candidates; who ties with the last of them goes on too."""
    n_kept = max(1, math.ceil(keep * len(standings) - 1e-9))
    last = sorted(standings.values(), key=lambda standing: standing.order, reverse=True)[n_kept - 1]
    kept = frozenset(name for name, standing in standings.items() if standing.order >= last.order)
    return Cut(kept, last)
