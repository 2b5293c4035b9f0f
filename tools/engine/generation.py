"""Answers to many prompts at once, from the base or from one adapter on it; greedy unless told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from tools.chat import stop_token_ids
from tools.engine.base import LoadedBase
from tools.engine.decode_cache import DecodeCache, DecodePass, FillPass, PrefixPass, StepPass, decoding
from tools.engine.lora import Adapter, Span
from tools.errors import BakehouseError

__all__ = [
    "Answer",
    "Choose",
    "StoppedError",
    "choose_greedy",
    "generate_answers",
    "shared_length",
    "stop_ids_of",
]

Choose = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""Given logits_B_V and the number of each row's prompt, returns the next token of each row."""

# Waiting prompts are read once this share of the slots is free: a pass for few of them costs
# nearly as much as one for many.
_FREE_SHARE: Final = 0.25
# Prompt tokens read in one pass, padding included; one prompt may have more.
_FILL_TOKENS: Final = 8192


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
    # On a CPU, argmax of bfloat16 takes ten times as long; both take the first of equals.
    return logits_B_V.max(-1).indices


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

    What all prompts begin with is read once. A row that ends makes room for one that waits.

    Args:
        batch_size: Rows in flight at most.
        choose: Picks each next token.
    Raises:
        StoppedError: should_stop said so between two passes.
    """
    stops = stop_ids_of(base)
    decoding_run = _Decoding(base, prompts, adapter, stops, max_new_tokens, batch_size, choose)
    return tuple(_answer(base.tokenizer, tokens, stops) for tokens in decoding_run.run(should_stop))


@dataclass
class _Running:
    """A row in a slot."""

    number: int
    n_held: int
    """Tokens of it in its slot; the last one chosen is not yet."""


class _Decoding:
    """The rows in flight, in slots from 0 on without a gap, and those that wait."""

    def __init__(
        self,
        base: LoadedBase,
        prompts: Sequence[Sequence[int]],
        adapter: Adapter | None,
        stops: frozenset[int],
        max_new_tokens: int,
        batch_size: int,
        choose: Choose,
    ) -> None:
        self._base = base
        self._adapter = adapter
        self._stops = stops
        self._max_new_tokens = max_new_tokens
        self._choose = choose
        n_shared = shared_length(prompts)
        self._prefix = tuple(prompts[0][:n_shared]) if prompts else ()
        self._tails = [tuple(prompt[n_shared:]) for prompt in prompts]
        self._outputs: list[list[int]] = [[] for _ in prompts]
        self._running: list[_Running] = []
        # The longest first: memory peaks at the start, and rows of like length are read together.
        self._waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
        self._n_slots = min(batch_size, len(prompts))
        widest = max((len(tail) for tail in self._tails), default=0)
        self._cache = DecodeCache(self._n_slots, widest_fill=widest, max_length=widest + max_new_tokens)

    @torch.inference_mode()
    def run(self, should_stop: Callable[[], bool]) -> list[list[int]]:
        """Return the tokens of every answer."""
        with decoding(self._base.model.config):
            if self._prefix and self._max_new_tokens:
                places_1_T = torch.arange(len(self._prefix), device=self._base.device)[None]
                self._pass(torch.tensor([self._prefix]), places_1_T, PrefixPass(self._cache))
            while self._max_new_tokens and (self._running or self._waiting):
                if should_stop():
                    raise StoppedError("asked to stop while answers were being generated")
                n_free = self._n_slots - len(self._running)
                if self._waiting and n_free >= self._n_slots * _FREE_SHARE:
                    self._admit(n_free)
                else:
                    self._step()
        return self._outputs

    def _admit(self, n_free: int) -> None:
        """Read waiting prompts into free slots and choose their first tokens."""
        widest = len(self._tails[self._waiting[0]])
        n_rows = min(n_free, len(self._waiting), max(1, _FILL_TOKENS // widest))
        numbers = [self._waiting.popleft() for _ in range(n_rows)]
        tails = [self._tails[number] for number in numbers]
        ids_B_T = torch.tensor([tail + (0,) * (widest - len(tail)) for tail in tails])
        places_B_T = (len(self._prefix) + torch.arange(widest, device=self._base.device)).expand(n_rows, -1)
        first = len(self._running)
        hidden_B_T_D = self._pass(ids_B_T, places_B_T, FillPass(self._cache, first))
        last_B = torch.tensor([len(tail) - 1 for tail in tails], device=self._base.device)
        hidden_B_D = hidden_B_T_D[torch.arange(n_rows, device=self._base.device), last_B]
        self._running += [_Running(number, len(self._tails[number])) for number in numbers]
        self._take(hidden_B_D, first)

    def _step(self) -> None:
        """Read the last token of every row in flight and choose the next."""
        lengths = [row.n_held for row in self._running]
        lengths_B = torch.tensor(lengths, device=self._base.device)
        ids_B_1 = torch.tensor([[self._outputs[row.number][-1]] for row in self._running])
        turn = StepPass(self._cache, lengths, lengths_B)
        hidden_B_1_D = self._pass(ids_B_1, (len(self._prefix) + lengths_B)[:, None], turn)
        for row in self._running:
            row.n_held += 1
        self._take(hidden_B_1_D[:, 0], 0)

    def _pass(self, ids_B_T: torch.Tensor, places_B_T: torch.Tensor, turn: DecodePass) -> torch.Tensor:
        spans = [] if self._adapter is None else [Span(self._adapter, 0, len(ids_B_T))]
        with self._base.stack.placed(spans, dim=0):
            hidden_B_T_D: torch.Tensor = self._base.decoder(
                input_ids=ids_B_T.to(self._base.device),
                position_ids=places_B_T,
                use_cache=False,
                decode_pass=turn,
            ).last_hidden_state
        return hidden_B_T_D

    def _take(self, hidden_B_D: torch.Tensor, first: int) -> None:
        """Choose a token for each row from slot first on; those that end leave."""
        rows = self._running[first:]
        next_B = self._choose(hidden_B_D @ self._base.head_V_D.t(), [row.number for row in rows])
        for row, token in zip(rows, next_B.tolist(), strict=True):
            self._outputs[row.number].append(token)
        kept = [slot for slot, row in enumerate(self._running) if not self._has_ended(row)]
        # The last rows move into the gaps: whoever is in flight lies without one.
        late = [slot for slot in kept if slot >= len(kept)]
        gaps = sorted(set(range(len(kept))).difference(kept))
        if gaps:
            self._cache.move(late, gaps)
            for source, target in zip(late, gaps, strict=True):
                self._running[target] = self._running[source]
        del self._running[len(kept) :]

    def _has_ended(self, row: _Running) -> bool:
        tokens = self._outputs[row.number]
        return tokens[-1] in self._stops or len(tokens) >= self._max_new_tokens


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts begin with, short of any prompt's last."""
    if len(prompts) < 2:
        return 0
    # The smallest and the largest prompt agree on what all prompts agree on.
    low, high = min(prompts, key=tuple), max(prompts, key=tuple)
    limit = min(len(prompt) for prompt in prompts) - 1
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b and i < limit), limit)


def _answer(tokenizer: Any, tokens: list[int], stops: frozenset[int]) -> Answer:
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    is_complete = bool(tokens) and tokens[-1] in stops
    return Answer(text, len(tokens), is_complete, tuple(tokens[:-1] if is_complete else tokens))
