"""Metering: every request of a planner debited before it leaves, the SDK's repeats included."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from agent.budget.amounts import Amounts, RequestMeter
from agent.planners.usage import PlannerUsage
from tools.task import PlannerPrices

__all__ = ["RequestDebits", "worst_prompt_tokens"]

_BYTES_A_TOKEN: Final = 2
"""English has four and more, JSON and code three, Chinese two: a prompt is not longer than this says."""
_SERVER_TOKENS: Final = 1000
"""What a server adds to a prompt to explain the tools."""
_MILLION: Final = 1_000_000


@dataclass
class RequestDebits:
    """Debits a planner's requests one by one, and settles each by what the server says of it.

    A request that is refused or lost on the way keeps its turn; a reply that was broken off, or
    whose server counts nothing, keeps its whole worst case.
    """

    meter: RequestMeter
    prices: PlannerPrices | None
    max_tokens: int
    _open: list[int] = field(default_factory=list)

    def on_request(self, content: bytes) -> None:
        """Debit a request of this body before it is sent.

        Raises:
            BudgetError: it does not fit into what is left.
        """
        worst = self._cost(worst_prompt_tokens(content), self.max_tokens)
        self._open.append(self.meter.reserve(worst))

    def on_status(self, status: int) -> None:
        """Settle a request that the server refused: it costs its turn and no tokens."""
        if status >= 400 and self._open:
            self.meter.settle(self._open.pop(), Amounts(dollars=self._no_dollars(), turns=1))

    def on_reply(self, usage: PlannerUsage) -> None:
        """Settle a request by the usage of its reply; one that counts nothing stays as it is."""
        if not self._open:
            return
        number = self._open.pop()
        if usage.tokens:
            dollars = usage.priced(self.prices).dollars
            self.meter.settle(number, Amounts(dollars=dollars, tokens=usage.tokens, turns=1))

    def _cost(self, tokens_in: int, tokens_out: int) -> Amounts:
        dollars = None
        if self.prices is not None:
            # A prompt that the server keeps is billed above its plain price.
            dearest = max(self.prices.input, self.prices.cache_write, self.prices.cache_read)
            dollars = (tokens_in * dearest + tokens_out * self.prices.output) / _MILLION
        return Amounts(dollars=dollars, tokens=tokens_in + tokens_out, turns=1)

    def _no_dollars(self) -> float | None:
        return None if self.prices is None else 0.0


def worst_prompt_tokens(content: bytes) -> int:
    """Return how many tokens a request's body may come to at most."""
    return len(content) // _BYTES_A_TOKEN + _SERVER_TOKENS
