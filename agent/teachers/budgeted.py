"""The budgeted teacher: one whose requests are debited in the flywheel's own budget."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from agent.budget.amounts import Amounts, RequestMeter
from agent.teachers.asking import worst_case_tokens
from agent.teachers.teacher import ChatReply, Teacher
from tools.task import PlannerPrices

__all__ = ["BudgetedTeacher"]

_MILLION = 1_000_000


@dataclass(frozen=True)
class BudgetedTeacher:
    """Debits the worst case of a request before it is made, and settles it by what the reply says.

    A request that brings no reply, or one that says nothing of its cost, stays debited in full.
    """

    teacher: Teacher
    meter: RequestMeter
    prices: PlannerPrices | None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def name(self) -> str:
        return self.teacher.name

    def ask(self, system: str, question: str, *, max_tokens: int) -> ChatReply:
        """Return the reply of one attempt.

        Raises:
            BudgetError: the request does not fit into what is left; nothing was sent.
        """
        most_in = worst_case_tokens(system, question, 0)
        worst = self._amounts(most_in, max_tokens)
        # Requests run side by side, and the journal is one.
        with self._lock:
            number = self.meter.reserve(worst)
        reply = self.teacher.ask(system, question, max_tokens=max_tokens)
        if reply.input_tokens is not None and reply.output_tokens is not None:
            with self._lock:
                self.meter.settle(number, self._amounts(reply.input_tokens, reply.output_tokens))
        return reply

    def _amounts(self, tokens_in: int, tokens_out: int) -> Amounts:
        dollars = None
        if self.prices is not None:
            # What a server keeps of a prompt is billed above its plain price.
            dearest = max(self.prices.input, self.prices.cache_write)
            dollars = (tokens_in * dearest + tokens_out * self.prices.output) / _MILLION
        return Amounts(dollars=dollars, tokens=tokens_in + tokens_out, turns=1)
