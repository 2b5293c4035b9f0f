"""Answers in batches that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from tools.engine.base import LoadedBase
from tools.engine.generation import Answer, generate_answers
from tools.engine.lora import Adapter
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

    def answer(self, prompts: Sequence[Sequence[int]], adapter: Adapter | None) -> tuple[Answer, ...]:
        """Answer every prompt, in the order of prompts.

        Raises:
            StoppedError: asked to stop.
            RuntimeError, MemoryError: not even one row at a time fits.
        """
        while True:
            try:
                return generate_answers(
                    self._base,
                    prompts,
                    adapter=adapter,
                    max_new_tokens=self._max_new_tokens,
                    batch_size=self.batch_size,
                    should_stop=self._should_stop,
                )
            except (RuntimeError, MemoryError) as err:
                n_rows = min(self.batch_size, len(prompts))
                if not is_out_of_memory(err) or n_rows == 1:
                    raise
            self.batch_size = n_rows // 2
            give_back_memory()
            logger.warning("answering ran out of memory; from now on %d rows at once", self.batch_size)
