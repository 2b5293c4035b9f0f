"""Attention of a packed stream by torch's kernel for documents of any length, where the device has it.

Nothing is padded or moved: the kernel is told where each document ends, once a batch. A prefix that
rows share is a document of its own among the queries, and stands before each row's tail among the
keys.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from tools.engine.transfer import send

if TYPE_CHECKING:
    from tools.engine.attention import Document

__all__ = ["VarlenPlan", "has_kernel", "plan_varlen", "varlen_attention"]

logger = logging.getLogger(__name__)

_TOLERANCE: Final = 0.02
# Queries of the last keys: causal attention whose last query stands at the last key.
_CAUSAL: Final = (-1, 0)


@dataclass(frozen=True)
class VarlenPlan:
    """Where each document's queries and keys end; computed once a batch."""

    ends_q: torch.Tensor
    ends_k: torch.Tensor
    max_q: int
    max_k: int
    source_K: torch.Tensor | None
    """The stream's token behind each key; None where the keys are the stream itself."""


@dataclass(frozen=True)
class _Segment:
    """Tokens of the stream that attend together: to `keys`, the last of which are they themselves."""

    start: int
    length: int
    keys: tuple[int, ...]


def plan_varlen(
    documents: Sequence[Document], n_tokens: int, device: torch.device | str = "cpu"
) -> VarlenPlan | None:
    """Return the plan of documents that are laid in their order, their shared prefixes before them.

    None where they do not cover the stream from end to end.
    """
    segments = _segments(documents)
    ends_q, ends_k = [0], [0]
    for segment in segments:
        if segment.start != ends_q[-1]:
            return None
        ends_q.append(segment.start + segment.length)
        ends_k.append(ends_k[-1] + len(segment.keys))
    if ends_q[-1] != n_tokens:
        return None
    shares = ends_k[-1] != n_tokens
    source = [key for segment in segments for key in segment.keys] if shares else None
    return VarlenPlan(
        send(torch.tensor(ends_q, dtype=torch.int32), device),
        send(torch.tensor(ends_k, dtype=torch.int32), device),
        max(segment.length for segment in segments),
        max(len(segment.keys) for segment in segments),
        None if source is None else send(torch.tensor(source), device),
    )


def _segments(documents: Sequence[Document]) -> list[_Segment]:
    segments: list[_Segment] = []
    seen: set[int] = set()
    for document in documents:
        if document.prefix_length and document.prefix_start not in seen:
            seen.add(document.prefix_start)
            places = range(document.prefix_start, document.prefix_start + document.prefix_length)
            segments.append(_Segment(document.prefix_start, document.prefix_length, tuple(places)))
        if document.tail_length:
            segments.append(_Segment(document.tail_start, document.tail_length, tuple(document.places())))
    return segments


def varlen_attention(
    q_N_H_D: torch.Tensor,
    k_N_G_D: torch.Tensor,
    v_N_G_D: torch.Tensor,
    plan: VarlenPlan,
    scaling: float | None,
) -> torch.Tensor:
    """Return [N, H, D]: each document's queries on its keys, causally."""
    if plan.source_K is not None:
        k_N_G_D, v_N_G_D = (_gather(x, plan.source_K) for x in (k_N_G_D, v_N_G_D))
    return _kernel(q_N_H_D, k_N_G_D, v_N_G_D, plan, scaling)


def _kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: VarlenPlan, scaling: float | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out: Any = varlen_attn(
        q,
        k,
        v,
        plan.ends_q,
        plan.ends_k,
        plan.max_q,
        plan.max_k,
        scale=scaling,
        window_size=_CAUSAL,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, torch.Tensor)
    return out


class _Gather(torch.autograd.Function):
    """Take tokens of a stream, some several times; their gradients are added up in float32."""

    @staticmethod
    def forward(ctx: Any, x_N: torch.Tensor, source_K: torch.Tensor) -> torch.Tensor:
        ctx.shape = x_N.shape
        ctx.save_for_backward(source_K)
        return x_N.index_select(0, source_K)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (source_K,) = ctx.saved_tensors
        total = torch.zeros(ctx.shape, dtype=torch.float32, device=grads[0].device)
        return total.index_add_(0, source_K, grads[0].float()).to(grads[0].dtype), None


# torch leaves `apply` untyped.
_gather: Any = _Gather.apply


def has_kernel(device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, size: int) -> bool:
    """Whether the kernel does heads of this size on this device, and rightly; tried once each."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return _is_right(device, dtype, heads, kv_heads, size)


@functools.cache
def _is_right(device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, size: int) -> bool:
    try:
        agrees = _agrees(device, dtype, heads, kv_heads, size)
    except (ImportError, TypeError, RuntimeError, ValueError, AssertionError) as err:
        logger.warning("documents are padded for attention: the varlen kernel fails: %s", err)
        return False
    if not agrees:
        logger.warning("documents are padded for attention: the varlen kernel gives other numbers")
    return agrees


@torch.inference_mode(False)
@torch.enable_grad()
def _agrees(device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, size: int) -> bool:
    """Compare with plain attention, results and gradients: one document, and one whose prefix is shared."""
    generator = torch.Generator().manual_seed(0)

    def draw(n_heads: int) -> torch.Tensor:
        return torch.randn((31, n_heads, size), generator=generator).to(device, dtype).requires_grad_()

    segments = [range(7), range(7, 12), [*range(7, 12), *range(12, 24)], [*range(7, 12), *range(24, 31)]]
    lengths = (7, 5, 12, 7)
    ends_q = torch.tensor([0, 7, 12, 24, 31], dtype=torch.int32, device=device)
    ends_k = torch.tensor([0, 7, 12, 29, 41], dtype=torch.int32, device=device)
    source = torch.tensor([key for keys in segments for key in keys], device=device)
    plan = VarlenPlan(ends_q, ends_k, 12, 17, source)
    q, k, v = draw(heads), draw(kv_heads), draw(kv_heads)
    upstream = torch.randn((31, heads, size), generator=generator).to(device, dtype)
    parts = []
    for keys, length in zip(segments, lengths, strict=True):
        places = list(keys)
        parts.append(_plain(q[places[-length:]], k[places], v[places]))
    found = []
    for out in (varlen_attention(q, k, v, plan, None), torch.cat(parts)):
        gradients = torch.autograd.grad(out, (q, k, v), upstream.to(out.dtype))
        found.append([out.detach(), *gradients])
    return all(
        bool(torch.linalg.vector_norm((a - b).float()) <= _TOLERANCE * torch.linalg.vector_norm(b.float()))
        for a, b in zip(*found, strict=True)
    )


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend with plain products in float32; the last query stands at the last key."""
    groups = q.shape[1] // k.shape[1]
    q, k, v = (
        x.float().transpose(0, 1) for x in (q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1))
    )
    mask = torch.ones((q.shape[1], k.shape[1]), dtype=torch.bool, device=q.device).tril(
        k.shape[1] - q.shape[1]
    )
    scores = (q @ k.transpose(1, 2) * q.shape[2] ** -0.5).masked_fill(~mask, -torch.inf)
    return (F.softmax(scores, -1) @ v).transpose(0, 1)
