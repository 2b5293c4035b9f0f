"""The meter of a teacher: calls and tokens, debited before they are spent."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from tools.errors import BudgetError

__all__ = ["Caps", "Meter", "Spent"]


@dataclass(frozen=True)
class Caps:
    """What a job may spend; None leaves a cap open."""

    calls: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("max-calls", self.calls), ("max-tokens", self.tokens)):
            if value is not None and value < 1:
                raise BudgetError(f"{name} is {value}; a whole number from 1, or no cap at all")


@dataclass(frozen=True)
class Spent:
    """Calls made, and tokens read and written; where an endpoint does not say, the worst case."""

    calls: int = 0
    tokens: int = 0


class Meter:
    """Counts what a job spends, from several threads at once.

    Args:
        spent: What an earlier run of the same job spent.
    """

    def __init__(self, caps: Caps, spent: Spent = Spent()) -> None:
        self.caps = caps
        self._spent = spent
        self._lock = threading.Lock()

    @property
    def spent(self) -> Spent:
        """What was spent so far, the worst case of calls in flight included."""
        with self._lock:
            return self._spent

    def debit(self, worst_tokens: int) -> None:
        """Take one call and its worst case off what is left, before it is made.

        Raises:
            BudgetError: that is over a cap; nothing was taken.
        """
        with self._lock:
            calls, tokens = self._spent.calls + 1, self._spent.tokens + worst_tokens
            if self.caps.calls is not None and calls > self.caps.calls:
                raise BudgetError(f"the cap of {self.caps.calls} calls is reached; raise --max-calls")
            if self.caps.tokens is not None and tokens > self.caps.tokens:
                raise BudgetError(
                    f"{self._spent.tokens} tokens are spent and the next call may take {worst_tokens}, "
                    f"over the cap of {self.caps.tokens}; raise --max-tokens"
                )
            self._spent = Spent(calls, tokens)

    def settle(self, worst_tokens: int, tokens: int) -> None:
        """Put what a call really took in the place of its worst case."""
        with self._lock:
            self._spent = Spent(self._spent.calls, self._spent.tokens - worst_tokens + tokens)
