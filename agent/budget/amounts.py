"""Amounts: what a step may cost at worst, or did cost, in every unit that has a cap."""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Amounts", "RequestMeter"]

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]


class Amounts(BaseModel):
    """Seconds, dollars, tokens, turns and trials, as the journal keeps them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wall_s: _Seconds | None = 0.0
    """None in a worst case that nobody knows: all that is left."""
    gpu_s: _Seconds | None = 0.0
    """Seconds of wall clock times the GPUs held; None as for wall_s."""
    dollars: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 0.0
    """None where no price is known."""
    tokens: _Count = 0
    turns: _Count = 0
    """Requests to a language model."""
    trials: tuple[str, ...] = ()
    """Names: a trial that was cut off and goes on is the same trial."""

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(
            wall_s=_add(self.wall_s, other.wall_s),
            gpu_s=_add(self.gpu_s, other.gpu_s),
            dollars=_add(self.dollars, other.dollars),
            tokens=self.tokens + other.tokens,
            turns=self.turns + other.turns,
            trials=tuple(dict.fromkeys((*self.trials, *other.trials))),
        )


class RequestMeter(Protocol):
    """Counts the requests of a planner against the budget, each before it is made."""

    def reserve(self, worst: Amounts) -> int:
        """Debit a request's worst case and return the number under which it is settled.

        Raises:
            BudgetError: it does not fit into what is left; nothing was debited.
        """
        ...

    def settle(self, number: int, spent: Amounts) -> None:
        """Put what a request really cost in the place of its worst case."""
        ...


def _add(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
