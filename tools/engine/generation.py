"""Answers to many prompts at once, from the base or from one adapter on it; greedy unless told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from tools.chat import stop_token_ids
from tools.engine.base import LoadedBase
from tools.engine.lora import Adapter, Span
from tools.errors import BakehouseError

__all__ = ["Answer", "Choose", "StoppedError", "choose_greedy", "generate_answers", "stop_ids_of"]

Choose = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""Given logits_B_V and the number of each row's prompt, returns the next token of each row."""

# Finished rows leave the batch once this share of it is idle: moving the cache costs a copy.
_IDLE_SHARE: Final = 0.25


class StoppedError(BakehouseError):
    """The work was asked to stop before it was whole."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one prompt, without special tokens."""

    text: str
    n_tokens: int
    """Tokens generated, the one that ended the turn included."""
    is_complete: bool
    """False when the token limit cut it off."""
    token_ids: tuple[int, ...]
    """All that was generated, special tokens included, but for the one that ended the turn."""


def stop_ids_of(base: LoadedBase) -> frozenset[int]:
    """Return the tokens that end an answer: the model's, the tokenizer's and the template's."""
    found = getattr(base.model.generation_config, "eos_token_id", None)
    ids = set(found if isinstance(found, list) else [found])
    ids.discard(None)
    return frozenset(ids) | frozenset(stop_token_ids(base.tokenizer))


def choose_greedy(logits_B_V: torch.Tensor, _numbers: Sequence[int]) -> torch.Tensor:
    """Return the likeliest token of each row."""
    return logits_B_V.argmax(-1)


def generate_answers(
    base: LoadedBase,
    prompts: Sequence[Sequence[int]],
    *,
    adapter: Adapter | None,
    max_new_tokens: int,
    batch_size: int,
    should_stop: Callable[[], bool] = lambda: False,
    choose: Choose = choose_greedy,
) -> tuple[Answer, ...]:
    """Answer every prompt, in the order of prompts.

    Args:
        choose: Picks each next token.
    Raises:
        StoppedError: should_stop said so between two batches.
    """
    stops = stop_ids_of(base)
    # Prompts of like length share a batch, the longest first: memory peaks at the start.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        if should_stop():
            raise StoppedError("asked to stop while answers were being generated")
        numbers = order[start : start + batch_size]
        batch = {i: prompts[i] for i in numbers}
        decoded = _decode_batch(base, batch, adapter, stops, max_new_tokens, choose)
        for i, tokens in zip(numbers, decoded, strict=True):
            answers[i] = _answer(base.tokenizer, tokens, stops)
    return tuple(answers[i] for i in range(len(prompts)))


@torch.inference_mode()
def _decode_batch(
    base: LoadedBase,
    batch: Mapping[int, Sequence[int]],
    adapter: Adapter | None,
    stops: frozenset[int],
    max_new_tokens: int,
    choose: Choose,
) -> list[list[int]]:
    from transformers import DynamicCache

    numbers, prompts = list(batch), list(batch.values())
    width = max(len(prompt) for prompt in prompts)
    pads = [width - len(prompt) for prompt in prompts]
    ids_B_T = torch.tensor(
        [[0] * pad + list(p) for pad, p in zip(pads, prompts, strict=True)], device=base.device
    )
    mask_B_T = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads], device=base.device)
    stop_ids = torch.tensor(sorted(stops), device=base.device)
    cache = DynamicCache(config=base.model.config)
    position_B_T = (mask_B_T.cumsum(-1) - 1).clamp_min(0)
    rows = list(range(len(prompts)))
    outputs: list[list[int]] = [[] for _ in prompts]
    running_B = torch.ones(len(prompts), dtype=torch.bool, device=base.device)
    for _ in range(max_new_tokens):
        logits_B_V = _next_logits(base, adapter, ids_B_T, mask_B_T, position_B_T, cache)
        next_B = choose(logits_B_V, [numbers[row] for row in rows])
        for row, token, is_running in zip(rows, next_B.tolist(), running_B.tolist(), strict=True):
            if is_running:
                outputs[row].append(token)
        running_B &= ~torch.isin(next_B, stop_ids)
        n_running = int(running_B.sum())
        if not n_running:
            break
        ids_B_T, position_B_T = next_B[:, None], position_B_T[:, -1:] + 1
        if n_running <= len(rows) * (1 - _IDLE_SHARE):
            kept = running_B.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows = [rows[i] for i in kept.tolist()]
            ids_B_T, position_B_T, mask_B_T = ids_B_T[kept], position_B_T[kept], mask_B_T[kept]
            running_B = running_B[kept]
        mask_B_T = torch.cat([mask_B_T, mask_B_T.new_ones((len(rows), 1))], dim=1)
    return outputs


def _next_logits(
    base: LoadedBase,
    adapter: Adapter | None,
    ids_B_T: torch.Tensor,
    mask_B_T: torch.Tensor,
    position_B_T: torch.Tensor,
    cache: Any,
) -> torch.Tensor:
    spans = [] if adapter is None else [Span(adapter, 0, len(ids_B_T))]
    with base.stack.placed(spans, dim=0):
        hidden_B_T_D = base.decoder(
            input_ids=ids_B_T,
            attention_mask=mask_B_T,
            position_ids=position_B_T,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    logits_B_V: torch.Tensor = hidden_B_T_D[:, -1] @ base.head_V_D.t()
    return logits_B_V


def _answer(tokenizer: Any, tokens: list[int], stops: frozenset[int]) -> Answer:
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    is_complete = bool(tokens) and tokens[-1] in stops
    return Answer(text, len(tokens), is_complete, tuple(tokens[:-1] if is_complete else tokens))
