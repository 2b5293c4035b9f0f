"""How much one pass may hold, learned by running out of memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from tools.engine.member import Member

__all__ = ["PassLimit"]


class PassLimit:
    """The most tokens of one pass; without limit until memory has run out once."""

    def __init__(self) -> None:
        self.tokens: int | None = None

    def lower(self, n_tokens: int) -> int:
        """Take half of a pass that did not fit as the limit from now on, and return it."""
        half = max(1, n_tokens // 2)
        self.tokens = half if self.tokens is None else min(self.tokens, half)
        return self.tokens

    def groups(self, members: Sequence[Member]) -> Iterator[tuple[Member, ...]]:
        """Split members into those that share a pass, in their order; heeds a limit lowered meanwhile."""
        left = tuple(members)
        while left:
            n = self._n_fitting(left)
            yield left[:n]
            left = left[n:]

    def _n_fitting(self, members: Sequence[Member]) -> int:
        """Return how many members, one at least, go into one pass."""
        if self.tokens is None:
            return len(members)
        taken = itertools.accumulate(member.next_tokens(self.tokens) for member in members)
        return max(1, sum(n_tokens <= self.tokens for n_tokens in taken))
