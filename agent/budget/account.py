"""The account: what a run has spent and reserved, read from the journal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Final

from pydantic import ValidationError

from agent.budget.amounts import Amounts
from tools.journal import JournalEvent

__all__ = ["RESERVED", "SETTLED", "Account", "Reservation", "read_account"]

RESERVED: Final = "budget_reserved"
SETTLED: Final = "budget_settled"


@dataclass(frozen=True)
class Reservation:
    """The worst case of a step, debited before it began and not settled yet."""

    number: int
    """The journal's event that holds it."""
    step: str
    iteration_id: str
    at: str
    worst: Amounts


@dataclass
class Account:
    """What one run has spent. A run is a flywheel with all the times that it went on."""

    run_id: str | None
    settled: list[tuple[str, Amounts]] = field(default_factory=list)
    """Iteration and amounts."""
    open: dict[int, Reservation] = field(default_factory=dict)
    gpus: int = 0
    """Most GPUs that a worker of the run has held."""

    @property
    def spent(self) -> Amounts:
        """What is settled."""
        return reduce(Amounts.__add__, (amounts for _, amounts in self.settled), Amounts())

    @property
    def committed(self) -> Amounts:
        """What is settled, and the worst case of all that is not."""
        return reduce(Amounts.__add__, (one.worst for one in self.open.values()), self.spent)

    def spent_in(self, iteration_id: str) -> Amounts:
        """Return what is settled for one iteration."""
        mine = (amounts for key, amounts in self.settled if key == iteration_id)
        return reduce(Amounts.__add__, mine, Amounts())

    def take(self, event: JournalEvent) -> None:
        """Take in the next event of the journal, unless it speaks of another run."""
        if event.data.get("run") != self.run_id:
            return
        if event.event == RESERVED:
            self._reserve(event)
        elif event.event == SETTLED:
            self._settle(event)

    def _reserve(self, event: JournalEvent) -> None:
        worst = _amounts(event.data.get("worst"))
        self.open[event.seq] = Reservation(event.seq, event.step or "", event.key, event.at, worst)
        before = event.data.get("before_s")
        if isinstance(before, int | float) and before > 0:
            self.settled.append((event.key, Amounts(wall_s=before)))

    def _settle(self, event: JournalEvent) -> None:
        number, gpus = event.data.get("reservation"), event.data.get("gpus")
        if isinstance(number, int):
            self.open.pop(number, None)
        if isinstance(gpus, int):
            self.gpus = max(self.gpus, gpus)
        self.settled.append((event.key, _amounts(event.data.get("spent"))))


def read_account(events: Iterable[JournalEvent]) -> Account:
    """Return the account of the newest run in a journal."""
    known = tuple(events)
    begun = [event.key for event in known if event.event == "run_begin"]
    account = Account(begun[-1] if begun else None)
    for event in known:
        account.take(event)
    return account


def _amounts(value: object) -> Amounts:
    try:
        return Amounts.model_validate(value)
    except ValidationError:
        # Written by another version: what it says of this budget is nothing.
        return Amounts()
