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
    spent: Amounts = field(default_factory=Amounts)
    """What is settled."""
    by_iteration: dict[str, Amounts] = field(default_factory=dict)
    open: dict[int, Reservation] = field(default_factory=dict)
    gpus: int = 0
    """Most GPUs that a worker of the run has held."""

    @property
    def committed(self) -> Amounts:
        """What is settled, and the worst case of all that is not."""
        return reduce(Amounts.__add__, (one.worst for one in self.open.values()), self.spent)

    def spent_in(self, iteration_id: str) -> Amounts:
        """Return what is settled for one iteration."""
        return self.by_iteration.get(iteration_id, Amounts())

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
            self._add(event.key, Amounts(wall_s=before))

    def _settle(self, event: JournalEvent) -> None:
        number, gpus = event.data.get("reservation"), event.data.get("gpus")
        if isinstance(number, int):
            self.open.pop(number, None)
        if isinstance(gpus, int):
            self.gpus = max(self.gpus, gpus)
        self._add(event.key, _amounts(event.data.get("spent")))

    def _add(self, iteration_id: str, amounts: Amounts) -> None:
        self.spent += amounts
        self.by_iteration[iteration_id] = self.spent_in(iteration_id) + amounts


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
