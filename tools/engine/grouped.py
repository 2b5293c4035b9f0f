"""The low-rank products of several adapters in one kernel each way, where the device has one.

A loop over adapters starts a handful of small kernels for each of them in each layer; on an
accelerator starting them costs more than running them. A grouped product takes runs of tokens of
any length, each with factors of its own.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from tools.engine.low_rank import LowRankProduct, stacked_linear

__all__ = ["grouped_linear", "is_grouped"]

logger = logging.getLogger(__name__)

# The kernel reads 16 bytes at a time: sizes are multiples of 8 numbers of half precision.
_ALIGNMENT: Final = 8
_TOLERANCE: Final = 0.02


def is_grouped(x: torch.Tensor, weight_O_I: torch.Tensor, products: Sequence[LowRankProduct]) -> bool:
    """Return whether products that lie end to end over all tokens of x can go through one kernel."""
    if len(products) < 2 or x.dtype != torch.bfloat16:
        return False
    if any(size % _ALIGNMENT for size in weight_O_I.shape) or not _has_kernel(x.device):
        return False
    ends = [0, *(product.start + product.length for product in products)]
    tiled = all(product.start == end for product, end in zip(products, ends, strict=False))
    return tiled and ends[-1] == x.numel() // x.shape[-1]


def grouped_linear(
    x: torch.Tensor, weight_O_I: torch.Tensor, bias_O: torch.Tensor | None, products: Sequence[LowRankProduct]
) -> torch.Tensor:
    """Return x W^T + b plus each product on its tokens, as stacked_linear does."""
    trained = [factor for product in products for factor in product.trained]
    result: torch.Tensor = _apply(x, weight_O_I, bias_O, products, *trained)
    return result


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_O_I: torch.Tensor,
        bias_O: torch.Tensor | None,
        products: Sequence[LowRankProduct],
        *_trained: torch.Tensor,
    ) -> torch.Tensor:
        x_N_I = x.flatten(0, -2)
        mask_N_I = _draw_mask(x_N_I, products)
        seen_N_I = x_N_I if mask_N_I is None else x_N_I * mask_N_I
        ends_K, scale_K = _runs(
            x.device, tuple(p.start + p.length for p in products), tuple(p.scale for p in products)
        )
        a_K_R_I, scaled_K_O_R = _stacked(products)
        low_N_R = F.grouped_mm(seen_N_I, a_K_R_I.transpose(1, 2), offs=ends_K)
        out = F.linear(x, weight_O_I, bias_O)
        out.view(-1, out.shape[-1]).add_(F.grouped_mm(low_N_R, scaled_K_O_R.transpose(1, 2), offs=ends_K))
        ctx.products, ctx.shape = products, x.shape
        ctx.save_for_backward(weight_O_I, seen_N_I, low_N_R, ends_K, scale_K, a_K_R_I, scaled_K_O_R, mask_N_I)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight_O_I, seen_N_I, low_N_R, ends_K, scale_K, a_K_R_I, scaled_K_O_R, mask_N_I = ctx.saved_tensors
        products: Sequence[LowRankProduct] = ctx.products
        dy_N_O = grads[0].flatten(0, -2).contiguous()
        dlow_N_R = F.grouped_mm(dy_N_O, scaled_K_O_R, offs=ends_K)
        _add_gradients(products, 0, F.grouped_mm(dlow_N_R.t(), seen_N_I, offs=ends_K).float())
        # The product's own factor B is unscaled.
        db_K_O_R = F.grouped_mm(dy_N_O.t(), low_N_R, offs=ends_K).float() * scale_K[:, None, None]
        _add_gradients(products, 1, db_K_O_R)
        dx = None
        if ctx.needs_input_grad[0]:
            dseen_N_I = F.grouped_mm(dlow_N_R, a_K_R_I, offs=ends_K)
            dx_N_I = dy_N_O @ weight_O_I
            dx_N_I = dx_N_I.add_(dseen_N_I) if mask_N_I is None else dx_N_I.addcmul_(dseen_N_I, mask_N_I)
            dx = dx_N_I.view(ctx.shape)
        return dx, *[None] * (3 + 2 * len(products))


@functools.lru_cache(maxsize=8)
def _runs(
    device: torch.device, ends: tuple[int, ...], scales: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where each run ends and its scale, on the device: sent once a pass, not once a layer."""
    with torch.inference_mode(False):
        return torch.tensor(ends, dtype=torch.int32, device=device), torch.tensor(scales, device=device)


def _draw_mask(x_N_I: torch.Tensor, products: Sequence[LowRankProduct]) -> torch.Tensor | None:
    if all(product.draw_mask is None for product in products):
        return None
    parts = (x_N_I.narrow(0, product.start, product.length) for product in products)
    return torch.cat(
        [
            torch.ones_like(part) if product.draw_mask is None else product.draw_mask(part)
            for product, part in zip(products, parts, strict=True)
        ]
    )


def _stacked(products: Sequence[LowRankProduct]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all A and all scaled B, filled with zeros to one rank: zeros add nothing."""
    rank = max(len(product.a_R_I) for product in products)
    rank += -rank % _ALIGNMENT
    a_s = [_widened(product.a_R_I, 0, rank) for product in products]
    b_s = [_widened(product.b_O_R * product.scale, 1, rank) for product in products]
    return torch.stack(a_s), torch.stack(b_s)


def _widened(factor: torch.Tensor, dim: int, rank: int) -> torch.Tensor:
    missing = rank - factor.shape[dim]
    if not missing:
        return factor
    return F.pad(factor, (0, 0, 0, missing) if dim == 0 else (0, missing))


def _add_gradients(products: Sequence[LowRankProduct], which: int, grad_K: torch.Tensor) -> None:
    """Add what was found for the stacked factors to those that are trained, ranks cut back."""
    targets, sources = [], []
    for product, grad in zip(products, grad_K.unbind(), strict=True):
        factor = product.trained[which]
        if factor.requires_grad:
            assert factor.grad is not None
            targets.append(factor.grad)
            sources.append(grad[tuple(map(slice, factor.shape))])
    if targets:
        torch._foreach_add_(targets, sources)


@functools.cache
def _has_kernel(device: torch.device) -> bool:
    """Whether this device has the kernel and it gives what the products one by one give."""
    if device.type != "cuda" or not hasattr(F, "grouped_mm"):
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        is_right = _agrees(device)
    except RuntimeError as err:
        logger.warning("adapters are multiplied one by one: the grouped kernel fails: %s", err)
        return False
    if not is_right:
        logger.warning("adapters are multiplied one by one: the grouped kernel gives other numbers")
    return is_right


@torch.inference_mode(False)
@torch.enable_grad()
def _agrees(device: torch.device) -> bool:
    """Compare both ways on runs of odd lengths and ranks: results and all gradients."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(device, torch.bfloat16)

    x, weight, upstream = draw(53, 64), draw(48, 64), draw(53, 48)
    factors = [(draw(rank, 64), draw(48, rank)) for rank in (8, 3, 16)]
    found = []
    for compute in (stacked_linear, grouped_linear):
        inputs = x.clone().requires_grad_()
        products = []
        for (a, b), start, length in zip(factors, (0, 13, 14), (13, 1, 39), strict=True):
            trained = (a.float().requires_grad_(), b.float().requires_grad_())
            for factor in trained:
                factor.grad = torch.zeros_like(factor)
            products.append(LowRankProduct(trained, a, b, 0.5, start, length))
        out = compute(inputs, weight, None, products)
        torch.autograd.backward(out, upstream)
        gradients = [factor.grad for product in products for factor in product.trained]
        found.append([out.detach(), inputs.grad, *gradients])
    return all(_is_near(one, other) for one, other in zip(*found, strict=True))


def _is_near(found: torch.Tensor | None, expected: torch.Tensor | None) -> bool:
    if found is None or expected is None:
        return False
    gap = torch.linalg.vector_norm(found.float() - expected.float())
    return bool(gap <= _TOLERANCE * torch.linalg.vector_norm(expected.float()))


# torch leaves `apply` untyped.
_apply: Any = _GroupedProduct.apply
