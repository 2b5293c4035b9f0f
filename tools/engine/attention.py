"""Attention inside each document of a packed stream.

A stream holds many documents end to end, [1, N] tokens and no padding. Every other part of a
decoder treats tokens alone; attention is where documents could see each other. Here queries,
keys and values are regrouped per document, attended causally and scattered back.

Rows that begin alike, with a system prompt say, may share the tokens of that beginning: the
stream holds them once, and every row attends to them. In a causal decoder a token knows only
what came before it, so the shared tokens are the same in every row and the result is too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from tools.engine.transfer import send
from tools.engine.varlen import VarlenPlan, has_kernel, plan_varlen, varlen_attention
from tools.errors import ModelError

__all__ = [
    "PACKED_ATTENTION",
    "Document",
    "PackedDocuments",
    "pack_documents",
    "pack_places",
    "register_packed_attention",
]

PACKED_ATTENTION: Final = "bakehouse_packed"

# Documents share a bucket while its padding stays below this share of its longest document.
_BUCKET_SLACK: Final = 0.25
# Widest bucket attended with plain products on a CPU: in half precision, in float32.
_DIRECT_WIDTH: Final = (512, 128)
# Keyword arguments by which transformers asks for attention that this function does not do.
_UNSUPPORTED: Final = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask")


@dataclass(frozen=True)
class Bucket:
    """Documents of like length that are attended in one right-padded batch."""

    n_documents: int
    width: int


@dataclass(frozen=True)
class Document:
    """One row's place in a stream: a prefix that other rows may share, and a tail of its own."""

    prefix_start: int
    prefix_length: int
    tail_start: int
    tail_length: int

    @property
    def length(self) -> int:
        return self.prefix_length + self.tail_length

    def places(self) -> list[int]:
        """Return the stream's position of each of its tokens."""
        prefix = range(self.prefix_start, self.prefix_start + self.prefix_length)
        return [*prefix, *range(self.tail_start, self.tail_start + self.tail_length)]


@dataclass(frozen=True)
class PackedDocuments:
    """Where each token of a stream lies in the padded buckets; computed once a batch."""

    buckets: tuple[Bucket, ...]
    slot_N: torch.Tensor
    """Place of token i of the stream in the padded buckets laid end to end."""
    n_slots: int
    is_identity: bool
    """No padding and no reordering: the stream is the padded layout already."""
    filled_R: torch.Tensor
    """The slots that hold a token, document by document."""
    source_R: torch.Tensor | None
    """The stream's token in each filled slot; None where no token fills two, and then slot_N
    is the filled slots in the stream's order."""
    varlen: VarlenPlan | None = None
    """The same for the kernel that pads nothing, where the stream is on a device that may have it."""


def pack_documents(lengths: Sequence[int], device: torch.device | str = "cpu") -> PackedDocuments:
    """Group documents that lie end to end, given by their lengths in stream order, into buckets."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    documents = [Document(start, 0, start, n) for start, n in zip(starts, lengths, strict=False)]
    return pack_places(documents, starts[-1], device)


def pack_places(
    documents: Sequence[Document], n_tokens: int, device: torch.device | str = "cpu"
) -> PackedDocuments:
    """Group documents into padded buckets, whether or not they share prefixes.

    A shared prefix is put into every document's bucket, so that each attends as if it were its
    own, and what attention says of it is taken from the first.
    """
    lengths = [document.length for document in documents]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    slots = torch.full((n_tokens,), -1, dtype=torch.long)
    filled: list[torch.Tensor] = []
    sources: list[torch.Tensor] = []
    buckets: list[Bucket] = []
    offset = 0
    while order:
        width = lengths[order[0]]
        members = [i for i in order if lengths[i] >= width * (1 - _BUCKET_SLACK)]
        order = order[len(members) :]
        for row, i in enumerate(sorted(members)):
            first = offset + row * width
            filled.append(torch.arange(first, first + lengths[i]))
            sources.append(torch.tensor(documents[i].places(), dtype=torch.long))
        buckets.append(Bucket(len(members), width))
        offset += len(members) * width
    filled_R, source_R = torch.cat(filled), torch.cat(sources)
    # Written backwards, so that the first document's slot is the one that stays.
    slots[source_R.flip(0)] = filled_R.flip(0)
    shared = len(source_R) != n_tokens
    identity = not shared and offset == n_tokens and bool((slots == torch.arange(offset)).all())
    return PackedDocuments(
        tuple(buckets),
        send(slots, device),
        offset,
        identity,
        send(filled_R, device),
        send(source_R, device) if shared else None,
        plan_varlen(documents, n_tokens, device) if torch.device(device).type == "cuda" else None,
    )


class _Pad(torch.autograd.Function):
    """Spread stream tokens over the padded layout, zeros elsewhere.

    Zeros, not copies of a token: a non-finite value of one document must not reach another
    through padding that is multiplied by a weight of zero.
    """

    @staticmethod
    def forward(ctx: Any, x_N: torch.Tensor, packed: PackedDocuments) -> torch.Tensor:
        ctx.packed, ctx.n_tokens = packed, x_N.shape[0]
        padded = x_N.new_zeros((packed.n_slots, *x_N.shape[1:]))
        if packed.source_R is None:
            return padded.index_copy_(0, packed.slot_N, x_N)
        return padded.index_copy_(0, packed.filled_R, x_N.index_select(0, packed.source_R))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        packed = ctx.packed
        if packed.source_R is None:
            return grads[0].index_select(0, packed.slot_N), None
        grad_R = grads[0].index_select(0, packed.filled_R)
        # A shared token gathers the gradient of every row: added up in float32, rounded once.
        total = torch.zeros((ctx.n_tokens, *grad_R.shape[1:]), dtype=torch.float32, device=grad_R.device)
        return total.index_add_(0, packed.source_R, grad_R.float()).to(grad_R.dtype), None


class _Unpad(torch.autograd.Function):
    """Take the stream tokens back out of the padded layout."""

    @staticmethod
    def forward(ctx: Any, x_P: torch.Tensor, slot_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(slot_N)
        ctx.n_slots = x_P.shape[0]
        return x_P.index_select(0, slot_N)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (slot_N,) = ctx.saved_tensors
        grad = grads[0]
        return grad.new_zeros((ctx.n_slots, *grad.shape[1:])).index_copy_(0, slot_N, grad), None


# torch leaves `apply` untyped.
_pad: Any = _Pad.apply
_unpad: Any = _Unpad.apply


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: PackedDocuments | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend inside each document of a [1, H, N, D] stream; the signature is transformers' own."""
    _refuse_special(module, attention_mask, dropout, documents, kwargs)
    assert documents is not None
    # [1, H, N, D] -> [N, H, D]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    plan = documents.varlen
    if plan is not None and has_kernel(q.device, q.dtype, q.shape[1], k.shape[1], q.shape[2]):
        return varlen_attention(q, k, v, plan, scaling).unsqueeze(0), None
    if not documents.is_identity:
        q, k, v = (_pad(x, documents) for x in (q, k, v))
    out = _attend(q, k, v, documents.buckets, scaling)
    if not documents.is_identity:
        out = _unpad(out, documents.slot_N)
    return out.unsqueeze(0), None


def _attend(
    q_P: torch.Tensor,
    k_P: torch.Tensor,
    v_P: torch.Tensor,
    buckets: tuple[Bucket, ...],
    scaling: float | None,
) -> torch.Tensor:
    """Return [P, H, D]. Right padding and causality together keep padding from real queries."""
    parts = []
    offset = 0
    for bucket in buckets:
        size = bucket.n_documents * bucket.width
        q, k, v = (
            x.narrow(0, offset, size).view(bucket.n_documents, bucket.width, *x.shape[1:]).transpose(1, 2)
            for x in (q_P, k_P, v_P)
        )
        if q.device.type == "cpu" and bucket.width <= _DIRECT_WIDTH[q.dtype == torch.float32]:
            out = _attend_directly(q, k, v, scaling)
        else:
            grouped = q.shape[1] != k.shape[1]
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        parts.append(out.transpose(1, 2).flatten(0, 1))
        offset += size
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend_directly(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attend with plain batched products: [B, H, T, D] in and out.

    On a CPU this takes a sixth of the time of the fused kernel for short rows in bfloat16,
    whose backward is slow there. Query heads that share a key head form one taller product.
    """
    n, heads, width, size = q.shape
    kv_heads = k.shape[1]
    mask = _causal_mask(width, heads // kv_heads, q.dtype)
    q, k, v = (x.reshape(n * kv_heads, -1, size) for x in (q, k, v))
    out: torch.Tensor = _direct(q, k, v, mask, scaling or size**-0.5)
    return out.view(n, heads, width, size)


class _Direct(torch.autograd.Function):
    """Softmax attention of [B, M, D] queries on [B, T, D] keys; keeps the weights for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
    ) -> torch.Tensor:
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale)
        # In half precision, rows that do not fill the processor's registers take four times as long.
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        (dout,) = grads
        dweights = torch.bmm(dout, v.transpose(1, 2))
        dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype).mul_(ctx.scale)
        dv = torch.bmm(weights.transpose(1, 2), dout)
        return torch.bmm(dscores, k), torch.bmm(dscores.transpose(1, 2), q), dv, None, None


# torch leaves `apply` untyped.
_direct: Any = _Direct.apply


@functools.lru_cache(maxsize=16)
def _causal_mask(width: int, groups: int, dtype: torch.dtype) -> torch.Tensor:
    # Kept from layer to layer; one made under inference_mode could not be trained with.
    with torch.inference_mode(False):
        return torch.full((width, width), -torch.inf, dtype=dtype).triu(1).repeat(groups, 1)


def _refuse_special(
    module: torch.nn.Module,
    attention_mask: torch.Tensor | None,
    dropout: float,
    documents: PackedDocuments | None,
    kwargs: dict[str, Any],
) -> None:
    special = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if special or dropout or attention_mask is not None or not getattr(module, "is_causal", True):
        raise ModelError(
            f"{type(module).__name__} asks for attention with {special or 'a mask or dropout'}; "
            "packed training knows plain causal attention alone. Use a base with full attention"
        )
    if documents is None:
        raise ModelError(f"{type(module).__name__} does not hand on the documents of the packed stream")


def register_packed_attention() -> None:
    """Make PACKED_ATTENTION known to transformers; harmless when done twice."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
