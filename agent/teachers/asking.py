"""Asking a teacher: every attempt is debited first, and attempts are bounded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agent.teachers.meter import Meter
from agent.teachers.teacher import ChatReply, Teacher
from tools.errors import EndpointBusyError

__all__ = ["Asker", "worst_case_tokens"]

_LONGEST_WAIT_S: Final = 60.0
_BYTES_A_TOKEN: Final = 2
"""Low on purpose: ordinary text has three to five bytes a token, and a debit must not fall short."""


@dataclass(frozen=True)
class Asker:
    """Asks one teacher on behalf of a job.

    Args:
        on_debit: Called with the worst case of an attempt once it is debited, before it is made.
        on_settled: Called with the worst case and what the attempt took.
        attempts: How often a busy endpoint is asked.
    """

    teacher: Teacher
    meter: Meter
    on_debit: Callable[[int], None] = lambda _: None
    on_settled: Callable[[int, int], None] = lambda *_: None
    attempts: int = 4
    sleep: Callable[[float], None] = time.sleep

    def ask(self, system: str, question: str, *, max_tokens: int) -> ChatReply:
        """Return the reply of the first attempt that gets one.

        Raises:
            BudgetError: the next attempt's worst case is over a cap.
            JudgeError: the teacher refused, or stayed busy.
        """
        worst = worst_case_tokens(system, question, max_tokens)
        for attempt in range(1, self.attempts + 1):
            self.meter.debit(worst)
            self.on_debit(worst)
            try:
                reply = self.teacher.ask(system, question, max_tokens=max_tokens)
            except EndpointBusyError as err:
                # What it took is unknown, so the worst case stays debited.
                if attempt == self.attempts:
                    raise
                self.sleep(min(max(err.wait_s, 0.5 * 2 ** (attempt - 1)), _LONGEST_WAIT_S))
                continue
            self._settle(worst, reply)
            return reply
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _settle(self, worst: int, reply: ChatReply) -> None:
        if reply.input_tokens is None or reply.output_tokens is None:
            return
        tokens = reply.input_tokens + reply.output_tokens
        self.meter.settle(worst, tokens)
        self.on_settled(worst, tokens)


def worst_case_tokens(system: str, question: str, max_tokens: int) -> int:
    """Return how many tokens a question may take at most, its reply included."""
    return (len(system.encode("utf-8")) + len(question.encode("utf-8"))) // _BYTES_A_TOKEN + 64 + max_tokens
