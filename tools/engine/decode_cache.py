"""Keys and values of rows that are being answered.

What all prompts of a group begin with is held once a group; each row's rest lies in a slot of its
own. A query attends to the shared part in one product for all rows of its group, and to its slot
in another, under one softmax. Slots are filled, extended by a token and emptied while other rows
go on; the rows of a group lie side by side.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F

from tools.errors import ModelError

__all__ = ["DecodeCache", "DecodePass", "FillPass", "PrefixPass", "Region", "StepPass", "decoding"]

DECODE_ATTENTION: Final = "bakehouse_decode"

# Slots begin with room for this many generated tokens, and grow by half when they are full.
_FIRST_ROOM: Final = 64
# Above this many scores, attention while slots are filled goes through the fused kernel.
_MOST_SCORES: Final = 2**23


class DecodePass(Protocol):
    """What a pass through the decoder reads from the cache and leaves in it."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Return [B, T, H, D] of q [B, H, T, D] and the pass's new k and v [B, KV, T, D]."""
        ...


@dataclass(frozen=True)
class Region:
    """The rows of a pass, from start on, that belong to one group."""

    group: int
    start: int
    length: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.length)


@dataclass
class _Layer:
    """One layer's share of the cache; a group's prefix is [KV, P, D], slots are [n_slots, KV, S, D]."""

    prefixes: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    slots: tuple[torch.Tensor, torch.Tensor] | None = None


class DecodeCache:
    """Room for n_slots rows, each of up to max_length tokens after the shared prefix of its group."""

    def __init__(self, n_slots: int, *, widest_fill: int, max_length: int) -> None:
        self.n_slots = n_slots
        self._max_length = max_length
        self.capacity = min(max_length, widest_fill + _FIRST_ROOM)
        self._layers: dict[int, _Layer] = {}

    def layer(self, number: int) -> _Layer:
        return self._layers.setdefault(number, _Layer())

    def reserve(self, length: int) -> None:
        """Have every slot hold length tokens; a layer grows when it is next used."""
        if length > self.capacity:
            self.capacity = min(self._max_length, max(length, self.capacity * 3 // 2))

    def slots(self, number: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's slots, made or grown to the capacity; k and v tell what they hold."""
        layer = self.layer(number)
        if layer.slots is None or layer.slots[0].shape[2] < self.capacity:
            old = layer.slots or (None, None)
            layer.slots = (self._grown(old[0], k), self._grown(old[1], v))
        return layer.slots

    def _grown(self, old: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        # Zeros: what lies beyond a row's end is multiplied by a weight of zero, so it must be finite.
        new = like.new_zeros((self.n_slots, like.shape[1], self.capacity, like.shape[3]))
        if old is not None:
            new[:, :, : old.shape[2]] = old
        return new

    def forget(self, group: int) -> None:
        """Drop what the rows of a group begin with."""
        for layer in self._layers.values():
            layer.prefixes.pop(group, None)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole slots over others, all at once: a source may be a target too."""
        for layer in self._layers.values():
            for slots in layer.slots or ():
                slots[torch.tensor(targets)] = slots[torch.tensor(sources)]


class PrefixPass:
    """The shared prefixes of some groups, one a row; all are equally long."""

    def __init__(self, cache: DecodeCache, groups: Sequence[int]) -> None:
        self._cache = cache
        self._groups = groups

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        held = self._cache.layer(layer).prefixes
        for row, group in enumerate(self._groups):
            held[group] = (k[row].contiguous(), v[row].contiguous())
        return _attend_causally(q, k, v, scaling)


class FillPass:
    """The rests of n prompts, padded on the right, into the slots from first on."""

    def __init__(self, cache: DecodeCache, first: int, regions: Sequence[Region]) -> None:
        self._cache = cache
        self._first = first
        self._regions = regions
        self._mask: torch.Tensor | None = None

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        n, _, width, _ = k.shape
        for slots, new in zip(self._cache.slots(layer, k, v), (k, v), strict=True):
            ours = slots[self._first : self._first + n]
            ours[:, :, :width] = new
            # What the row before left here must not reach this one, not even as 0 x infinity.
            ours[:, :, width:] = 0
        prefixes = self._cache.layer(layer).prefixes
        return _joined(
            [
                self._attend_one(
                    q[region.rows], k[region.rows], v[region.rows], prefixes.get(region.group), scaling
                )
                for region in self._regions
            ]
        )

    def _attend_one(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        prefix: tuple[torch.Tensor, torch.Tensor] | None,
        scaling: float,
    ) -> torch.Tensor:
        width = k.shape[2]
        prefix_length = 0 if prefix is None else prefix[0].shape[1]
        if q.numel() // q.shape[3] * (width + prefix_length) > _MOST_SCORES:
            return _attend_causally(q, *_after_prefix(prefix, k, v), scaling)
        if self._mask is None:
            ahead = torch.full((width, width), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
            self._mask = ahead.repeat(q.shape[1] // k.shape[1], 1)
        return _attend_in_parts(q, k, v, prefix, self._mask, scaling)


class StepPass:
    """One more token of each row in the slots from 0 on, which hold lengths tokens so far."""

    def __init__(
        self,
        cache: DecodeCache,
        lengths: Sequence[int],
        lengths_B: torch.Tensor,
        regions: Sequence[Region],
    ) -> None:
        self._cache = cache
        self._width = max(lengths) + 1
        self._lengths_B = lengths_B
        self._regions = regions
        self._mask: torch.Tensor | None = None
        self._places: torch.Tensor | None = None
        cache.reserve(self._width)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        n, kv_heads = k.shape[:2]
        slots = self._cache.slots(layer, k, v)
        # Alike in all layers, so made in the first.
        if self._places is None or self._mask is None:
            self._places = self._new_places(kv_heads)
            self._mask = self._beyond_end(kv_heads, q.dtype)
        for slot, new in zip(slots, (k, v), strict=True):
            slot.view(-1, slot.shape[3]).index_copy_(0, self._places, new.reshape(n * kv_heads, -1))
        prefixes = self._cache.layer(layer).prefixes
        parts = []
        for region in self._regions:
            held_k, held_v = (slot[region.rows, :, : self._width] for slot in slots)
            mask = self._mask[region.start * kv_heads : (region.start + region.length) * kv_heads]
            prefix = prefixes.get(region.group)
            parts.append(_attend_in_parts(q[region.rows], held_k, held_v, prefix, mask, scaling))
        return _joined(parts)

    def _new_places(self, kv_heads: int) -> torch.Tensor:
        """Return where, in slots laid flat, the new key of each row and head goes."""
        row_B = torch.arange(len(self._lengths_B), device=self._lengths_B.device)
        head_K = torch.arange(kv_heads, device=self._lengths_B.device)
        flat_B_K = (row_B[:, None] * kv_heads + head_K) * self._cache.capacity + self._lengths_B[:, None]
        return flat_B_K.flatten()

    def _beyond_end(self, kv_heads: int, dtype: torch.dtype) -> torch.Tensor:
        place_S = torch.arange(self._width, device=self._lengths_B.device)
        is_beyond_B_S = place_S > self._lengths_B[:, None]
        mask_B_S = torch.zeros(is_beyond_B_S.shape, dtype=dtype, device=place_S.device)
        mask_B_S.masked_fill_(is_beyond_B_S, -torch.inf)
        return mask_B_S.repeat_interleave(kv_heads, 0)[:, None]


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _attend_in_parts(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    mask: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Attend to the prefix and to each row's own keys with plain products, under one softmax.

    Query heads that share a key head form one taller product, and on the prefix all rows do too.
    """
    n, heads, width, size = q.shape
    kv_heads = k.shape[1]
    q_N_M_D = q.reshape(n * kv_heads, -1, size)
    tall = q_N_M_D.shape[1]
    own = torch.baddbmm(mask, q_N_M_D, k.flatten(0, 1).transpose(1, 2), alpha=scaling)
    if prefix is None:
        out = torch.bmm(torch.softmax(own, -1), v.flatten(0, 1))
    else:
        prefix_k, prefix_v = prefix
        length = prefix_k.shape[1]
        q_K_BM_D = q_N_M_D.view(n, kv_heads, tall, size).transpose(0, 1).reshape(kv_heads, n * tall, size)
        zero = q.new_zeros((1, 1, 1))
        shared = torch.baddbmm(zero, q_K_BM_D, prefix_k.transpose(1, 2), beta=0, alpha=scaling)
        shared = shared.view(kv_heads, n, tall, length).transpose(0, 1).reshape(n * kv_heads, tall, length)
        weight = torch.softmax(torch.cat([shared, own], -1), -1)
        to_shared = weight[..., :length].view(n, kv_heads, tall, length).transpose(0, 1)
        out = torch.bmm(to_shared.reshape(kv_heads, n * tall, length), prefix_v)
        out = out.view(kv_heads, n, tall, -1).transpose(0, 1).reshape(n * kv_heads, tall, -1)
        out = torch.baddbmm(out, weight[..., length:], v.flatten(0, 1))
    return out.view(n, heads, width, -1).transpose(1, 2)


def _after_prefix(
    prefix: tuple[torch.Tensor, torch.Tensor] | None, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if prefix is None:
        return k, v
    return torch.cat([prefix[0].expand(len(k), -1, -1, -1), k], 2), torch.cat(
        [prefix[1].expand(len(v), -1, -1, -1), v], 2
    )


def _attend_causally(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attend with the fused kernel; the last query stands at the last key."""
    width, length = q.shape[2], k.shape[2]
    if width == length:
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        return out.transpose(1, 2)
    # With a mask, grouped heads would fall back to a kernel that holds all scores.
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    mask = torch.ones((width, length), dtype=torch.bool, device=q.device).tril(length - width)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling).transpose(1, 2)


def _decode_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    decode_pass: DecodePass | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as the pass in flight says; the signature is transformers' own."""
    layer = getattr(module, "layer_idx", None)
    if decode_pass is None or layer is None or attention_mask is not None:
        raise ModelError(
            f"{type(module).__name__} does not number its layers, does not hand on the pass in flight, "
            "or brings a mask of its own; answers need a base with plain causal attention"
        )
    scale = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    return decode_pass.attend(layer, query, key, value, scale), None


@contextlib.contextmanager
def decoding(config: Any) -> Iterator[None]:
    """Have a model attend as the decode_pass handed to it says, for the length of the block."""
    from transformers import AttentionInterface

    AttentionInterface.register(DECODE_ATTENTION, _decode_attention)
    before = config._attn_implementation
    config._attn_implementation = DECODE_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before
