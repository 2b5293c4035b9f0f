"""Answers to many prompts at once, from the base and from adapters on it; greedy unless told."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from tools.chat import stop_token_ids
from tools.engine.base import LoadedBase
from tools.engine.decode_cache import (
    DecodeCache,
    DecodePass,
    FillPass,
    PrefixPass,
    Region,
    StepPass,
    decoding,
)
from tools.engine.lora import Adapter, Span
from tools.errors import BakehouseError

__all__ = [
    "Answer",
    "Asked",
    "Choose",
    "StoppedError",
    "choose_greedy",
    "generate_answers",
    "generate_for_all",
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


@dataclass(frozen=True)
class Asked:
    """Prompts for one adapter, or for the bare base."""

    prompts: Sequence[Sequence[int]]
    adapter: Adapter | None = None


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
    """Answer every prompt with one adapter, in the order of prompts; see generate_for_all."""
    (answers,) = generate_for_all(
        base,
        [Asked(prompts, adapter)],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        should_stop=should_stop,
        choose=choose,
    )
    return answers


def generate_for_all(
    base: LoadedBase,
    asked: Sequence[Asked],
    *,
    max_new_tokens: int,
    batch_size: int,
    should_stop: Callable[[], bool] = lambda: False,
    choose: Choose = choose_greedy,
    on_answered: Callable[[int, tuple[Answer, ...]], None] | None = None,
) -> list[tuple[Answer, ...]]:
    """Answer the prompts of several adapters, the same or different ones, in one batch.

    What all prompts of an adapter begin with is read once for it. A row that ends makes room for
    one that waits, whichever adapter it belongs to.

    Args:
        batch_size: Rows in flight at most, of all adapters together.
        choose: Picks each next token; prompts are numbered through all of asked.
        on_answered: Called with a place in asked and its answers as soon as they are whole; by
            and large in the order of asked.
    Returns:
        The answers of each of asked, in their order.
    Raises:
        StoppedError: should_stop said so between two passes.
    """
    run = _Decoding(base, asked, max_new_tokens, batch_size, choose)
    found: dict[int, tuple[Answer, ...]] = {}
    for place, tokens in run.run(should_stop):
        found[place] = tuple(_answer(base.tokenizer, row, run.stops) for row in tokens)
        if on_answered is not None:
            on_answered(place, found[place])
    return [found[place] for place in range(len(asked))]


@dataclass
class _Group:
    """What is asked of one adapter."""

    adapter: Adapter | None
    first: int
    """Number of its first prompt among all prompts."""
    n_prompts: int
    prefix: tuple[int, ...]
    n_left: int
    is_read: bool = False
    """The prefix is in the cache."""


@dataclass
class _Running:
    """A row in a slot."""

    number: int
    group: int
    n_held: int
    """Tokens of it in its slot; the last one chosen is not yet."""


class _Decoding:
    """The rows in flight, in slots from 0 on without a gap and group by group, and those that wait."""

    def __init__(
        self,
        base: LoadedBase,
        asked: Sequence[Asked],
        max_new_tokens: int,
        batch_size: int,
        choose: Choose,
    ) -> None:
        self.stops = stop_ids_of(base)
        self._base = base
        self._max_new_tokens = max_new_tokens
        self._choose = choose
        self._groups: list[_Group] = []
        self._tails: list[tuple[int, ...]] = []
        self._group_of: list[int] = []
        for place, item in enumerate(asked):
            n_shared, n = shared_length(item.prompts), len(item.prompts)
            prefix = tuple(item.prompts[0][:n_shared]) if n else ()
            self._groups.append(_Group(item.adapter, len(self._tails), n, prefix, n))
            self._tails += [tuple(prompt[n_shared:]) for prompt in item.prompts]
            self._group_of += [place] * n
        self._outputs: list[list[int]] = [[] for _ in self._tails]
        self._running: list[_Running] = []
        # Group after group, so that the first are whole early. In each the longest first: memory
        # peaks at the start, and rows of like length are read together.
        order = sorted(range(len(self._tails)), key=lambda i: (self._group_of[i], -len(self._tails[i])))
        self._waiting = deque(order)
        self._n_slots = min(batch_size, len(order))
        widest = max(map(len, self._tails), default=0)
        self._cache = DecodeCache(self._n_slots, widest_fill=widest, max_length=widest + max_new_tokens)

    def run(self, should_stop: Callable[[], bool]) -> Iterator[tuple[int, list[list[int]]]]:
        """Yield the place of each group and the tokens of its answers, once all are there."""
        whole = [place for place, group in enumerate(self._groups) if not group.n_left]
        if not self._max_new_tokens:
            whole = list(range(len(self._groups)))
            self._waiting.clear()
        while True:
            for place in whole:
                group = self._groups[place]
                yield place, self._outputs[group.first : group.first + group.n_prompts]
            if not self._running and not self._waiting:
                return
            if should_stop():
                raise StoppedError("asked to stop while answers were being generated")
            whole = self._turn()

    @torch.inference_mode()
    def _turn(self) -> list[int]:
        """Read prompts into free slots, or take every row a token further; return the groups now whole."""
        with decoding(self._base.model.config):
            n_free = self._n_slots - len(self._running)
            if self._waiting and n_free >= self._n_slots * _FREE_SHARE:
                return self._admit(n_free)
            return self._step()

    def _admit(self, n_free: int) -> list[int]:
        """Read waiting prompts into free slots and choose their first tokens."""
        numbers: list[int] = []
        widest = 0
        while self._waiting and len(numbers) < n_free:
            wider = max(widest, len(self._tails[self._waiting[0]]))
            if numbers and (len(numbers) + 1) * wider > _FILL_TOKENS:
                break
            numbers.append(self._waiting.popleft())
            widest = wider
        rows = [_Running(number, self._group_of[number], len(self._tails[number])) for number in numbers]
        self._read_prefixes({row.group for row in rows})
        tails = [self._tails[number] for number in numbers]
        ids_B_T = torch.tensor([tail + (0,) * (widest - len(tail)) for tail in tails])
        offset_B = torch.tensor([len(self._groups[row.group].prefix) for row in rows])
        places_B_T = offset_B[:, None] + torch.arange(widest)
        first = len(self._running)
        regions = _regions(rows)
        hidden_B_T_D = self._pass(ids_B_T, places_B_T, FillPass(self._cache, first, regions), regions)
        last_B = torch.tensor([len(tail) - 1 for tail in tails], device=self._base.device)
        hidden_B_D = hidden_B_T_D[torch.arange(len(rows), device=self._base.device), last_B]
        self._running += rows
        return self._take(hidden_B_D, first)

    def _read_prefixes(self, groups: Collection[int]) -> None:
        """Read what the prompts of groups begin with, where that is not in the cache yet."""
        lengths: dict[int, list[int]] = {}
        for place in sorted(groups):
            group = self._groups[place]
            if group.prefix and not group.is_read:
                lengths.setdefault(len(group.prefix), []).append(place)
        for length, places in lengths.items():
            at_once = max(1, _FILL_TOKENS // length)
            for start in range(0, len(places), at_once):
                self._read_prefixes_of(places[start : start + at_once], length)

    def _read_prefixes_of(self, places: Sequence[int], length: int) -> None:
        ids_B_T = torch.tensor([self._groups[place].prefix for place in places])
        places_B_T = torch.arange(length).expand(len(places), -1)
        regions = [Region(place, row, 1) for row, place in enumerate(places)]
        self._pass(ids_B_T, places_B_T, PrefixPass(self._cache, places), regions)
        for place in places:
            self._groups[place].is_read = True

    def _step(self) -> list[int]:
        """Read the last token of every row in flight and choose the next."""
        lengths = [row.n_held for row in self._running]
        lengths_B = torch.tensor(lengths, device=self._base.device)
        ids_B_1 = torch.tensor([[self._outputs[row.number][-1]] for row in self._running])
        starts = [len(self._groups[row.group].prefix) + row.n_held for row in self._running]
        regions = _regions(self._running)
        turn = StepPass(self._cache, lengths, lengths_B, regions)
        hidden_B_1_D = self._pass(ids_B_1, torch.tensor(starts)[:, None], turn, regions)
        for row in self._running:
            row.n_held += 1
        return self._take(hidden_B_1_D[:, 0], 0)

    def _pass(
        self, ids_B_T: torch.Tensor, places_B_T: torch.Tensor, turn: DecodePass, regions: Sequence[Region]
    ) -> torch.Tensor:
        spans = [Span(self._groups[part.group].adapter, part.start, part.length) for part in regions]
        with self._base.stack.placed(spans, dim=0):
            hidden_B_T_D: torch.Tensor = self._base.decoder(
                input_ids=ids_B_T.to(self._base.device),
                position_ids=places_B_T.to(self._base.device),
                use_cache=False,
                decode_pass=turn,
            ).last_hidden_state
        return hidden_B_T_D

    def _take(self, hidden_B_D: torch.Tensor, first: int) -> list[int]:
        """Choose a token for each row from slot first on; those that end leave.

        Returns:
            The groups of which no row is left.
        """
        rows = self._running[first:]
        next_B = self._choose(hidden_B_D @ self._base.head_V_D.t(), [row.number for row in rows])
        for row, token in zip(rows, next_B.tolist(), strict=True):
            self._outputs[row.number].append(token)
        kept = [slot for slot, row in enumerate(self._running) if not self._has_ended(row)]
        left = [row.group for row in self._running if self._has_ended(row)]
        if left:
            self._close_gaps(kept)
        whole = []
        for place in left:
            self._groups[place].n_left -= 1
            if not self._groups[place].n_left:
                self._cache.forget(place)
                whole.append(place)
        return whole

    def _close_gaps(self, kept: Sequence[int]) -> None:
        """Leave the rows in these slots alone in flight, without a gap and group by group.

        Rows stay where they are as far as that can be: to move one copies all its keys and values.
        """
        slots_of: dict[int, list[int]] = {}
        for slot in kept:
            slots_of.setdefault(self._running[slot].group, []).append(slot)
        sources: list[int] = []
        targets: list[int] = []
        start = 0
        for slots in slots_of.values():
            places = range(start, start + len(slots))
            sources += [slot for slot in slots if slot not in places]
            targets += sorted(set(places).difference(slots))
            start += len(slots)
        if sources:
            self._cache.move(sources, targets)
        before = list(self._running)
        for source, target in zip(sources, targets, strict=True):
            self._running[target] = before[source]
        del self._running[len(kept) :]

    def _has_ended(self, row: _Running) -> bool:
        tokens = self._outputs[row.number]
        return tokens[-1] in self.stops or len(tokens) >= self._max_new_tokens


def _regions(rows: Sequence[_Running]) -> list[Region]:
    """Return the runs of rows of one group."""
    found: list[Region] = []
    for group, run in itertools.groupby(rows, key=lambda row: row.group):
        start = found[-1].rows.stop if found else 0
        found.append(Region(group, start, len(list(run))))
    return found


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
