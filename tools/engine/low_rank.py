"""A frozen linear layer and the low-rank products that adapters add to it, as one operation.

One operation, so that the sums are made in the product's own kernel, nothing is split and joined
again where several adapters share a pass, and the gradients of the factors go straight into the
adapters' own float32 buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

__all__ = ["LowRankProduct", "add_low_rank", "stacked_linear"]


@dataclass(frozen=True)
class LowRankProduct:
    """scale * x A^T B^T on `length` tokens from `start` on."""

    trained: tuple[torch.Tensor, torch.Tensor]
    """A and B as they are trained; their gradients are added to `.grad`."""
    a_R_I: torch.Tensor
    b_O_R: torch.Tensor
    """The same in the precision of the pass."""
    scale: float
    start: int
    length: int
    draw_mask: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Given what goes in, draws what dropout multiplies it by."""


def stacked_linear(
    x: torch.Tensor, weight_O_I: torch.Tensor, bias_O: torch.Tensor | None, products: Sequence[LowRankProduct]
) -> torch.Tensor:
    """Return x W^T + b, plus each product on its tokens; x is [..., I], its leading dimensions flattened."""
    if not torch.is_grad_enabled():
        return _add(F.linear(x, weight_O_I, bias_O), x, products, [])
    result: torch.Tensor = _apply(x, None, weight_O_I, bias_O, products, *_trained(products))
    return result


def add_low_rank(x: torch.Tensor, y: torch.Tensor, products: Sequence[LowRankProduct]) -> torch.Tensor:
    """Return y plus each product on its tokens, for layers that compute y from x in their own way."""
    if not torch.is_grad_enabled():
        return _add(y.clone(), x, products, [])
    result: torch.Tensor = _apply(x, y, None, None, products, *_trained(products))
    return result


def _trained(products: Sequence[LowRankProduct]) -> list[torch.Tensor]:
    return [factor for product in products for factor in product.trained]


def _add(
    y: torch.Tensor, x: torch.Tensor, products: Sequence[LowRankProduct], kept: list[torch.Tensor]
) -> torch.Tensor:
    """Add the products to y in place, and what their gradients need to kept."""
    x_N_I, y_N_O = x.flatten(0, -2), y.view(-1, y.shape[-1])
    for product in products:
        x_T_I = x_N_I.narrow(0, product.start, product.length)
        if product.draw_mask is not None:
            mask = product.draw_mask(x_T_I)
            x_T_I = x_T_I * mask
            kept.append(mask)
        low_T_R = x_T_I @ product.a_R_I.t()
        # One fused product and sum; separate ones cost a pass over y more.
        y_N_O.narrow(0, product.start, product.length).addmm_(low_T_R, product.b_O_R.t(), alpha=product.scale)
        kept += [x_T_I, low_T_R]
    return y


class _StackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        y: torch.Tensor | None,
        weight_O_I: torch.Tensor | None,
        bias_O: torch.Tensor | None,
        products: Sequence[LowRankProduct],
        *_trained: torch.Tensor,
    ) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        if weight_O_I is None:
            assert y is not None
            start = y.clone()
        else:
            start = F.linear(x, weight_O_I, bias_O)
        out = _add(start, x, products, kept)
        ctx.products, ctx.shape = products, x.shape
        ctx.save_for_backward(weight_O_I, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        products: Sequence[LowRankProduct] = ctx.products
        weight_O_I, *kept = ctx.saved_tensors
        saved = iter(kept)
        dy_N_O = grads[0].flatten(0, -2)
        dx_N_I = None
        if ctx.needs_input_grad[0]:
            dx_N_I = (
                dy_N_O.new_zeros((len(dy_N_O), ctx.shape[-1])) if weight_O_I is None else dy_N_O @ weight_O_I
            )
        for product in products:
            mask_T_I = None if product.draw_mask is None else next(saved)
            dlow_T_R = _grade(product, dy_N_O, next(saved), next(saved))
            if dx_N_I is None:
                continue
            dx_T_I = dx_N_I.narrow(0, product.start, product.length)
            if mask_T_I is None:
                dx_T_I.addmm_(dlow_T_R, product.a_R_I)
            else:
                dx_T_I.addcmul_(dlow_T_R @ product.a_R_I, mask_T_I)
        dx = None if dx_N_I is None else dx_N_I.view(ctx.shape)
        return dx, grads[0] if ctx.needs_input_grad[1] else None, *[None] * (3 + 2 * len(products))


def _grade(
    product: LowRankProduct, dy_N_O: torch.Tensor, x_T_I: torch.Tensor, low_T_R: torch.Tensor
) -> torch.Tensor:
    """Add the gradients of a product's factors to theirs and return that of the product between them."""
    dy_T_O = dy_N_O.narrow(0, product.start, product.length)
    dlow_T_R = (dy_T_O @ product.b_O_R).mul_(product.scale)
    a_R_I, b_O_R = product.trained
    if a_R_I.requires_grad:
        assert a_R_I.grad is not None
        assert b_O_R.grad is not None
        a_R_I.grad.add_(dlow_T_R.t() @ x_T_I)
        b_O_R.grad.add_(dy_T_O.t() @ low_T_R, alpha=product.scale)
    return dlow_T_R


# torch leaves `apply` untyped.
_apply: Any = _StackedProduct.apply
