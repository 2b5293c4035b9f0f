"""Successive halving: after a part of their steps the worst candidates leave the search.

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

__all__ = ["Cut", "Halving", "cut"]


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
class Cut:
    """Who goes on from a rung."""

    kept: frozenset[str]
    threshold: float
    """The lowest score that went on."""

    def describe(self, score: float, step: int, total_steps: int, n_items: int) -> str:
        """Say why a candidate with a lower score left."""
        return (
            f"left the search after {step} of {total_steps} steps: dev score {score:.3f} on {n_items} rows; "
            f"the {len(self.kept)} that went on have {self.threshold:.3f} or more"
        )


def cut(scores: Mapping[str, float], keep: float) -> Cut:
    """Keep the best part of the candidates; who ties with the last of them goes on too."""
    n_kept = max(1, math.ceil(keep * len(scores) - 1e-9))
    threshold = sorted(scores.values(), reverse=True)[n_kept - 1]
    return Cut(frozenset(name for name, score in scores.items() if score >= threshold), threshold)
