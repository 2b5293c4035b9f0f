"""Answers from a model that is loaded here, with an adapter on it or bare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tools.chat import render_prompt
from tools.errors import ChatError
from tools.generators.generator import Conversation, Generation
from tools.probe.generator import Sampling, open_generator

if TYPE_CHECKING:
    from tools.engine.base import LoadedBase
    from tools.engine.lora import Adapter

__all__ = ["EngineGenerator", "open_engine_generator"]


@dataclass(frozen=True)
class EngineGenerator:
    """The engine's own generation, many conversations in one batch."""

    base: LoadedBase
    adapter: Adapter | None = None
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    batch_size: int = 32

    @property
    def name(self) -> str:
        return self.base.name

    def generate(self, conversations: Sequence[Conversation]) -> tuple[Generation, ...]:
        """Answer every conversation, in their order; one that the template refuses says why."""
        from tools.engine.generation import generate_answers
        from tools.probe.sampling import chooser

        found: dict[int, Generation] = {}
        prompts: dict[int, tuple[int, ...]] = {}
        for number, conversation in enumerate(conversations):
            try:
                prompts[number] = render_prompt(self.base.tokenizer, tuple(conversation))
            except ChatError as err:
                found[number] = Generation(None, str(err))
        drawn_by = ["\n".join(turn.content for turn in conversations[number]) for number in prompts]
        answers = generate_answers(
            self.base,
            list(prompts.values()),
            adapter=self.adapter,
            max_new_tokens=self.sampling.max_new_tokens,
            batch_size=self.batch_size,
            choose=chooser(self.sampling, drawn_by),
        )
        for number, answer in zip(prompts, answers, strict=True):
            found[number] = Generation(
                answer.text,
                input_tokens=len(prompts[number]),
                output_tokens=answer.n_tokens,
                is_complete=answer.is_complete,
            )
        return tuple(found[number] for number in range(len(conversations)))


def open_engine_generator(
    model_id: str,
    adapter: str | Path | None = None,
    *,
    sampling: Sampling | None = None,
    batch_size: int = 32,
    dtype: str = "bfloat16",
) -> EngineGenerator:
    """Load a model, as `tools.probe.generator.open_generator` does.

    Args:
        sampling: Greedy when None.
    Raises:
        ImportError, ModelError, ChatError: as `open_generator`.
    """
    opened = open_generator(model_id, adapter, batch_size=batch_size, dtype=dtype)
    return EngineGenerator(opened.base, opened.adapter, sampling or Sampling(temperature=0.0), batch_size)
