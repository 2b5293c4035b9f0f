"""Answers in batches that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from tools.engine.base import LoadedBase
from tools.engine.generation import Answer, Asked, generate_for_all
from tools.engine.memory import give_back_memory, is_out_of_memory

__all__ = ["Answering"]

logger = logging.getLogger(__name__)


class Answering:
    """Answers prompts greedily; takes fewer rows at once from the first time that memory runs out."""

    def __init__(
        self,
        base: LoadedBase,
        *,
        max_new_tokens: int,
        batch_size: int,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.batch_size = batch_size
        self._base = base
        self._max_new_tokens = max_new_tokens
        self._should_stop = should_stop

    def answer(self, asked: Sequence[Asked], on_answered: Callable[[int, tuple[Answer, ...]], None]) -> None:
        """Answer all prompts in one batch; what is whole is handed over at once and is not lost later.

        Args:
            on_answered: Called with a place in asked and its answers.
        Raises:
            StoppedError: asked to stop.
            RuntimeError, MemoryError: not even one row at a time fits.
        """
        left = dict(enumerate(asked))
        while left:
            try:
                self._attempt(left, on_answered)
            except (RuntimeError, MemoryError) as err:
                n_rows = min(self.batch_size, sum(len(item.prompts) for item in left.values()))
                if not is_out_of_memory(err) or n_rows <= 1:
                    raise
                self.batch_size = n_rows // 2
            if left:
                # Only here are the error and all that its frames held on to gone.
                give_back_memory()
                logger.warning("answering ran out of memory; from now on %d rows at once", self.batch_size)

    def _attempt(
        self, left: dict[int, Asked], on_answered: Callable[[int, tuple[Answer, ...]], None]
    ) -> None:
        """Answer what is left; what is whole leaves it, also when this ends in an error."""
        places = list(left)

        def hand_over(number: int, answers: tuple[Answer, ...]) -> None:
            del left[places[number]]
            on_answered(places[number], answers)

        generate_for_all(
            self._base,
            [left[place] for place in places],
            max_new_tokens=self._max_new_tokens,
            batch_size=self.batch_size,
            should_stop=self._should_stop,
            on_answered=hand_over,
        )
