"""The usage of a planner: the tokens that its replies took, and what they cost."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tools.task import PlannerPrices

__all__ = ["PlannerUsage"]

Count = Annotated[int, Field(ge=0)]
_MILLION = 1_000_000


class PlannerUsage(BaseModel):
    """Tokens of one plan, as the server counted them. A server that counts nothing gives zeros."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = ""
    turns: Count = 0
    """Replies that came back whole."""
    input_tokens: Count = 0
    """Read at the full price; what came from the cache or was written to it stands below."""
    cache_read_tokens: Count = 0
    cache_write_tokens: Count = 0
    output_tokens: Count = 0
    dollars: Annotated[float, Field(ge=0)] | None = None
    """None where no price is known."""

    @property
    def tokens(self) -> int:
        """All tokens, read and written."""
        cached = self.cache_read_tokens + self.cache_write_tokens
        return self.input_tokens + cached + self.output_tokens

    def add(
        self, *, input_tokens: int, output_tokens: int, cache_read_tokens: int, cache_write_tokens: int
    ) -> PlannerUsage:
        """Return the usage with one more reply."""
        return self.model_copy(
            update={
                "turns": self.turns + 1,
                "input_tokens": self.input_tokens + input_tokens,
                "output_tokens": self.output_tokens + output_tokens,
                "cache_read_tokens": self.cache_read_tokens + cache_read_tokens,
                "cache_write_tokens": self.cache_write_tokens + cache_write_tokens,
            }
        )

    def priced(self, prices: PlannerPrices | None) -> PlannerUsage:
        """Return the usage with its cost at prices."""
        if prices is None:
            return self.model_copy(update={"dollars": None})
        total = (
            self.input_tokens * prices.input
            + self.output_tokens * prices.output
            + self.cache_read_tokens * prices.cache_read
            + self.cache_write_tokens * prices.cache_write
        )
        return self.model_copy(update={"dollars": total / _MILLION})

    def __str__(self) -> str:
        cost = "dollars unknown" if self.dollars is None else f"${self.dollars:.4f}"
        return (
            f"{self.model}: {self.turns} replies, {self.input_tokens} tokens in, {self.cache_read_tokens} "
            f"from cache, {self.cache_write_tokens} to cache, {self.output_tokens} out, {cost}"
        )
