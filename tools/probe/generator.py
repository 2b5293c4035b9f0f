"""A model loaded to answer a probe's questions, in batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tools.chat import render_prompt
from tools.errors import ProbeError
from tools.probe.asking import Response
from tools.rows import Message
from tools.tokens import conversation_text, decode, encode

if TYPE_CHECKING:
    from tools.engine.base import LoadedBase
    from tools.engine.lora import Adapter

__all__ = ["ModelGenerator", "Sampling", "open_generator", "tokenizer_of"]

_MISSING: Final = (
    "a probe needs torch, transformers and safetensors to load a model ({err}): "
    "pip install 'bakehouse[train]', or hand in generator=, a function that answers in its place"
)


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Raises:
        ProbeError: a value is out of its range.
    """

    max_new_tokens: int = 1024
    temperature: float = 0.6
    """0 takes the likeliest token."""
    seed: int = 0
    top_p: float = 0.95
    """Draw from the likeliest tokens that together have this probability."""

    def __post_init__(self) -> None:
        if isinstance(self.max_new_tokens, bool) or not isinstance(self.max_new_tokens, int):
            raise ProbeError(f"max_new_tokens is {self.max_new_tokens!r}; a whole number is needed")
        if self.max_new_tokens <= 0:
            raise ProbeError(f"max_new_tokens is {self.max_new_tokens}; it must be above 0")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ProbeError(f"temperature is {self.temperature!r}; a finite number, 0 or more, is needed")
        if not 0 < self.top_p <= 1:
            raise ProbeError(f"top_p is {self.top_p!r}; a number above 0 and up to 1 is needed")


@dataclass(frozen=True)
class ModelGenerator:
    """A base in memory, with an adapter on it or bare, that answers in batches."""

    base: LoadedBase
    adapter: Adapter | None
    sampling: Sampling
    batch_size: int = 8

    @property
    def counted_by(self) -> str:
        return tokenizer_of(self.base.name)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model's tokenizer makes of a text."""
        return len(encode(self.base.tokenizer, text))

    def answer(self, prompts: Sequence[str]) -> tuple[Response, ...]:
        """Answer each prompt as the only user turn of a conversation.

        The responses hold special tokens as text, since some models mark their chain with
        them. Where the chat template itself opens the think block, the response begins with
        that opening.

        Raises:
            ChatError: a prompt holds a control token of the chat template.
            ProbeError: the model gives no probabilities (NaN): its weights are broken.
        """
        from tools.engine.generation import generate_answers
        from tools.probe.sampling import chooser

        tokenizer = self.base.tokenizer
        turns = [(Message("user", prompt),) for prompt in prompts]
        answers = generate_answers(
            self.base,
            [render_prompt(tokenizer, turn) for turn in turns],
            adapter=self.adapter,
            max_new_tokens=self.sampling.max_new_tokens,
            batch_size=self.batch_size,
            choose=chooser(self.sampling, prompts),
        )
        return tuple(
            Response(
                _opening(conversation_text(tokenizer, turn, prompt=True))
                + decode(tokenizer, answer.token_ids),
                answer.is_complete,
            )
            for turn, answer in zip(turns, answers, strict=True)
        )


def tokenizer_of(model_id: str) -> str:
    """Return the name that counts by a model's tokenizer go under in reports."""
    return f"tokenizer of {model_id}"


def open_generator(
    model_id: str,
    lora_path: str | Path | None = None,
    *,
    sampling: Sampling | None = None,
    batch_size: int = 8,
    dtype: str = "bfloat16",
) -> ModelGenerator:
    """Load a model with sdpa attention on the one device: CUDA where there is one.

    Args:
        model_id: A folder, a .gguf file or a Hub id.
        lora_path: Folder of a peft adapter. Plain LoRA runs beside the base; any other kind is
            merged into it by peft.
        sampling: The documented defaults when None.
        batch_size: Prompts answered at once.
        dtype: bfloat16, float16 or float32.
    Raises:
        ImportError: torch, transformers, safetensors or, for other than plain LoRA, peft is missing.
        ModelError: the model or the adapter cannot be loaded.
        ChatError: the tokenizer has no chat template that answers can be served with.
    """
    if batch_size < 1:
        raise ProbeError(f"batch_size is {batch_size}; it must be at least 1")
    try:
        from tools.engine.base import load_base
        from tools.probe.adapters import place_adapter
    except ImportError as err:
        raise ImportError(_MISSING.format(err=err), name=err.name) from err
    from tools.tokens import answer_ending

    base = load_base(model_id, dtype)
    answer_ending(base.tokenizer)
    adapter = None
    if lora_path is not None:
        base, adapter = place_adapter(base, lora_path)
    return ModelGenerator(base, adapter, sampling or Sampling(), batch_size)


def _opening(prompt: str) -> str:
    """Return the think tag that a prompt ends with, as some templates' do."""
    return "<think>\n" if prompt.rstrip().endswith("<think>") else ""
