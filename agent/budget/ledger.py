"""The ledger: the worst case of every step debited in the journal before it begins, then settled."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from agent.budget.account import RESERVED, SETTLED, Account, Reservation
from agent.budget.amounts import Amounts, RequestMeter
from agent.budget.limits import find_refusal, what_is_left
from agent.plan import BudgetLeft
from tools.clock import Clock
from tools.errors import BudgetError, GpuLostError
from tools.journal import Journal
from tools.task import BudgetCaps

__all__ = ["Ledger"]

_GPU_GONE: Final = (
    "{who} found {found} GPU(s), where earlier workers of this run held {seen}; look at `nvidia-smi` and the "
    "driver, then run the same command again: it goes on from here"
)


class Ledger:
    """Spends the budget of one run. Hold the workspace's lock.

    Args:
        journal: Where every debit stands before anything is spent.
        caps: What the run may spend.
        count_gpus: Looks how many GPUs a worker on this machine may hold.
        clock: The journal's.
        monotonic: Seconds that only grow.
    """

    def __init__(
        self,
        journal: Journal,
        caps: BudgetCaps,
        *,
        count_gpus: Callable[[], int],
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.caps = caps
        self.gpus = count_gpus()
        """That a worker is expected to hold, until one says it."""
        self._count_gpus = count_gpus
        self._journal = journal
        self._clock = clock
        self._monotonic = monotonic
        self._account = Account(None)
        self._n_taken = 0
        self._counted_until = monotonic()
        self._step_gpu_s = 0.0
        self._step_gpus = 0

    @property
    def account(self) -> Account:
        """What the run has spent and reserved."""
        events = self._journal.events()
        for event in events[self._n_taken :]:
            self._account.take(event)
        self._n_taken = len(events)
        return self._account

    def enter(self, run_id: str) -> None:
        """Spend for a run from here on, and settle what a process of it that died had reserved.

        That counts in full, but for its time, of which no more can be gone than has passed since.
        """
        self._account, self._n_taken = Account(run_id), 0
        for dead in tuple(self.account.open.values()):
            passed_s = _seconds_between(dead.at, self._clock())
            wall_s = passed_s if dead.worst.wall_s is None else min(dead.worst.wall_s, passed_s)
            most_gpu_s = wall_s * max(self.account.gpus, self.gpus)
            gpu_s = most_gpu_s if dead.worst.gpu_s is None else min(dead.worst.gpu_s, most_gpu_s)
            spent = dead.worst.model_copy(update={"wall_s": wall_s, "gpu_s": gpu_s})
            self._settle(dead, spent, cut_off=True)
        self.gpus = max(self.gpus, self.account.gpus)

    def left(self) -> BudgetLeft:
        """Return what is neither spent nor reserved; None where there is no cap."""
        return what_is_left(self.caps, self._committed())

    def refusal(self, worst: Amounts) -> str | None:
        """Return why a step of this worst case may not start, or None when it may."""
        return find_refusal(self.caps, self._committed(), worst)

    @contextlib.contextmanager
    def spending(self, step: str, iteration_id: str, worst: Amounts) -> Iterator[None]:
        """Debit a step's worst case, and settle it when the block ends, however it ends.

        Raises:
            BudgetError: it does not fit; nothing was debited.
        """
        debit = self.reserve(step, iteration_id, worst)
        began = self._monotonic()
        self._step_gpu_s, self._step_gpus = 0.0, 0
        try:
            yield
        finally:
            for lost in tuple(self.account.open.values()):
                # A request that nobody heard back from may have been billed.
                if lost.number != debit.number:
                    self._settle(lost, lost.worst)
            self._counted_until = self._monotonic()
            spent = Amounts(
                wall_s=round(self._counted_until - began, 3),
                gpu_s=round(self._step_gpu_s, 3),
                trials=worst.trials,
            )
            self._settle(debit, spent, gpus=max(self._step_gpus, self.account.gpus))

    def reserve(self, step: str, iteration_id: str, worst: Amounts) -> Reservation:
        """Write down a worst case before any of it is spent.

        Raises:
            BudgetError: it does not fit; nothing was debited.
        """
        refusal = self.refusal(worst)
        if refusal is not None:
            raise BudgetError(f"{step} of {iteration_id} was not started: {refusal}")
        left = self.left()
        # What nobody can estimate may take all that there is.
        worst = worst.model_copy(
            update={
                "wall_s": left.wall_s if worst.wall_s is None else worst.wall_s,
                "gpu_s": left.gpu_s if worst.gpu_s is None else worst.gpu_s,
            }
        )
        before_s = 0.0
        if not self.account.open:
            # What was done between two steps is wall clock too; inside one, its own time covers all.
            now = self._monotonic()
            before_s, self._counted_until = now - self._counted_until, now
        event = self._journal.append(
            RESERVED,
            iteration_id,
            step=step,
            run=self._account.run_id,
            worst=_plain(worst),
            before_s=round(before_s, 3),
        )
        return Reservation(event.seq, step, iteration_id, event.at, worst)

    def requests(self, step: str, iteration_id: str) -> RequestMeter:
        """Return the meter of a step's requests to a language model."""
        return _StepRequests(self, step, iteration_id)

    def check_gpus(self) -> None:
        """Look for the GPU that the run had before: without it a worker would go on, on the CPU.

        Raises:
            GpuLostError: there are fewer than workers held at once.
        """
        seen = self.account.gpus
        if seen and (found := self._count_gpus()) < seen:
            raise GpuLostError(_GPU_GONE.format(who="this machine", found=found, seen=seen))

    def limit_s(self) -> float | None:
        """Return the seconds after which a worker that starts now would pass a cap; None without one."""
        spent, limits = self.account.spent, []
        if self.caps.wall_s is not None:
            uncounted_s = self._monotonic() - self._counted_until
            limits.append(self.caps.wall_s - (spent.wall_s or 0.0) - uncounted_s)
        if self.caps.gpu_hours is not None and self.gpus:
            gpu_s = 3600 * self.caps.gpu_hours - (spent.gpu_s or 0.0) - self._step_gpu_s
            limits.append(gpu_s / self.gpus)
        return max(0.0, min(limits)) if limits else None

    def note_worker(self, wall_s: float, gpus: int | None) -> None:
        """Count the time of a worker; gpus is what it says that it held, None where it says nothing.

        Raises:
            GpuLostError: earlier workers of the run held a GPU, and this one found none.
        """
        seen = max(self.account.gpus, self._step_gpus)
        self._step_gpu_s += wall_s * (max(seen, self.gpus) if gpus is None else gpus)
        if gpus is None:
            return
        if seen and not gpus:
            raise GpuLostError(_GPU_GONE.format(who="a worker", found=gpus, seen=seen))
        # A lone trial holds one of several.
        self.gpus = max(self.gpus, gpus) if gpus else 0
        self._step_gpus = max(self._step_gpus, gpus)

    def _committed(self) -> Amounts:
        uncounted_s = max(0.0, self._monotonic() - self._counted_until)
        # While a step runs its worst case stands for its time.
        return self.account.committed + Amounts(wall_s=0.0 if self.account.open else uncounted_s)

    def _settle(self, debit: Reservation, spent: Amounts, **facts: Any) -> None:
        self._journal.append(
            SETTLED,
            debit.iteration_id,
            step=debit.step,
            run=self._account.run_id,
            reservation=debit.number,
            spent=_plain(spent),
            **facts,
        )


@dataclass(frozen=True)
class _StepRequests:
    ledger: Ledger
    step: str
    iteration_id: str

    def reserve(self, worst: Amounts) -> int:
        return self.ledger.reserve(self.step, self.iteration_id, worst).number

    def settle(self, number: int, spent: Amounts) -> None:
        debit = self.ledger.account.open[number]
        self.ledger._settle(debit, spent)


def _plain(amounts: Amounts) -> dict[str, Any]:
    return amounts.model_dump(mode="json", exclude_defaults=True)


def _seconds_between(start: str, end: str) -> float:
    try:
        return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
    except ValueError:
        # A journal that no clock of ours wrote: the worst case stands.
        return float(10**9)
