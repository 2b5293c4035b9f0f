"""Root-mean-square norms as one operation for autograd.

As written in transformers, a norm leaves float32 copies of all it sees for the backward pass and
goes over them a dozen times. What comes out here is the same, bit for bit, and the input and one
number a token are all that is kept.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

__all__ = ["fuse_norms"]


def fuse_norms(model: nn.Module) -> int:
    """Have every norm that this module computes exactly go through it when training; returns how many.

    A norm of another kind, such as one that adds 1 to its weight, gives other numbers on a trial
    and stays as it is.
    """
    n_fused = 0
    for module in model.modules():
        if isinstance(getattr(module, "variance_epsilon", None), float) and _is_same(module):
            plain = module.forward
            # Set past nn.Module, whose own __setattr__ is for parameters; it hides the class's method.
            module.__dict__["forward"] = functools.partial(_forward, module, plain)
            n_fused += 1
    return n_fused


def _forward(module: Any, plain: Any, x: torch.Tensor) -> torch.Tensor:
    fused = torch.is_grad_enabled() and not module.weight.requires_grad
    result: torch.Tensor = _norm(x, module.weight, module.variance_epsilon) if fused else plain(x)
    return result


@torch.no_grad()
def _is_same(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or "forward" in module.__dict__:
        return False
    draw = torch.randn((3, len(weight)), generator=torch.Generator().manual_seed(0))
    x = draw.to(weight.device, weight.dtype)
    found: torch.Tensor = _norm(x, weight, module.variance_epsilon)
    return torch.equal(found, module(x))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = x.float()
        rate = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, rate, weight_D)
        return weight_D * wide.mul(rate).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, rate, weight_D = ctx.saved_tensors
        # Copies, also of float32: they are changed in place.
        grad = (grads[0] * weight_D).float()
        unit = x.float() * rate
        shift = torch.linalg.vecdot(grad, unit).div_(x.shape[-1]).unsqueeze(-1)
        return grad.addcmul_(unit, shift, value=-1).mul_(rate).to(x.dtype), None, None


# torch leaves `apply` untyped.
_norm: Any = _Norm.apply
