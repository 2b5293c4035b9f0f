"""Putting questions to a generator: in batches, where one failure costs one question."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from tools.errors import BakehouseError, ProbeError

__all__ = ["BatchGenerator", "Reply", "Response", "ask"]

logger = logging.getLogger(__name__)

Q = TypeVar("Q")


@dataclass(frozen=True)
class Response:
    """What a model wrote."""

    text: str
    is_complete: bool | None = None
    """False when the budget cut it off, None when nobody can tell."""


@runtime_checkable
class BatchGenerator(Protocol):
    """Answers many prompts at once."""

    @property
    def batch_size(self) -> int: ...
    @property
    def counted_by(self) -> str:
        """The name of what `count_tokens` counts with."""
        ...

    def count_tokens(self, text: str) -> int: ...
    def answer(self, prompts: Sequence[str]) -> Sequence[Response]: ...


@dataclass(frozen=True)
class Reply(Generic[Q]):
    """What came back for one question: a response, or why there is none."""

    question: Q
    response: Response | None
    error: Exception | None
    wall_s: float
    """For a batch, its time divided by its questions."""


def ask(
    questions: Sequence[Q],
    generator: Callable[[Q], str] | BatchGenerator,
    *,
    text_of: Callable[[Q], str],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Reply[Q]]:
    """Yield the reply to every question, in their order, as soon as its batch is done.

    A batch that fails, for want of memory for instance, is halved until the question that
    fails stands alone; its reply says why, and the others go on.

    Args:
        generator: Takes a question, or takes the prompts of a batch.
        text_of: Returns a question's prompt.
        clock: Seconds, for the replies' times.
    """
    asked: _Asked[Q]
    if isinstance(generator, BatchGenerator):
        many, size = generator, generator.batch_size
        asked = _Asked(lambda batch: many.answer([text_of(question) for question in batch]), clock)
    else:
        one, size = generator, 1
        asked = _Asked(lambda batch: [Response(one(question)) for question in batch], clock)
    for start in range(0, len(questions), size):
        yield from asked.replies(questions[start : start + size])


@dataclass(frozen=True)
class _Asked(Generic[Q]):
    answer: Callable[[Sequence[Q]], Sequence[Response]]
    clock: Callable[[], float]

    def replies(self, batch: Sequence[Q]) -> list[Reply[Q]]:
        started = self.clock()
        try:
            responses = _checked(self.answer(batch), len(batch))
        except Exception as err:
            each_s = (self.clock() - started) / len(batch)
            if len(batch) > 1:
                logger.info("a batch of %d questions failed, halved: %s", len(batch), err)
                half = len(batch) // 2
                return self.replies(batch[:half]) + self.replies(batch[half:])
            logger.warning("a question failed: %s", err, exc_info=not isinstance(err, BakehouseError))
            return [Reply(batch[0], None, err, each_s)]
        each_s = (self.clock() - started) / len(batch)
        return [Reply(question, text, None, each_s) for question, text in zip(batch, responses, strict=True)]


def _checked(responses: Sequence[Response], n_asked: int) -> Sequence[Response]:
    if len(responses) != n_asked:
        raise ProbeError(f"the generator gave {len(responses)} responses to {n_asked} questions")
    for response in responses:
        if not isinstance(response.text, str):
            raise ProbeError(f"the generator gave {response.text!r:.80}; a text is needed")
    return responses
