"""Cross-entropy at supervised positions, without ever holding all logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

__all__ = ["SupervisedLoss", "supervised_loss"]

# Logits of a chunk in float32 take this many bytes at most: enough rows to keep a matrix product
# busy, few enough to stay near the processor.
_CHUNK_BYTES: Final = {"cpu": 24 * 2**20, "cuda": 256 * 2**20}
_CHUNK_BYTES_ELSEWHERE: Final = 128 * 2**20


@dataclass(frozen=True)
class SupervisedLoss:
    """The weighted sum to call backward on, and the loss of each position."""

    total: torch.Tensor
    per_token_S: torch.Tensor


def supervised_loss(
    hidden_S_D: torch.Tensor,
    head_V_D: torch.Tensor,
    targets_S: torch.Tensor,
    weights_S: torch.Tensor,
) -> SupervisedLoss:
    """Return sum(weights * cross-entropy) with gradients for the hidden states.

    The head is frozen and the weights are known beforehand, so that the gradient of a chunk is
    computed with its loss and its logits are dropped at once.

    Args:
        hidden_S_D: Hidden states that predict a supervised token.
        head_V_D: The vocabulary projection, no bias.
        targets_S: The tokens to predict.
        weights_S: Weight of each position, float32.
    """
    total, per_token = _chunked(hidden_S_D, head_V_D, targets_S, weights_S)
    return SupervisedLoss(total, per_token)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_S_D: torch.Tensor,
        head_V_D: torch.Tensor,
        targets_S: torch.Tensor,
        weights_S: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses = torch.empty_like(weights_S)
        grad = torch.empty_like(hidden_S_D)
        chunk_bytes = _CHUNK_BYTES.get(hidden_S_D.device.type, _CHUNK_BYTES_ELSEWHERE)
        step = max(1, chunk_bytes // (4 * head_V_D.shape[0]))
        for start in range(0, len(targets_S), step):
            part = slice(start, start + step)
            logits = (hidden_S_D[part] @ head_V_D.t()).float()
            picked = logits.gather(-1, targets_S[part, None])[:, 0]
            peak = logits.amax(-1)
            probabilities = torch.softmax(logits, -1)
            # The likeliest token has probability 1 / sum(exp(logit - peak)).
            losses[part] = peak - probabilities.amax(-1).log() - picked
            probabilities[torch.arange(len(picked), device=picked.device), targets_S[part]] -= 1
            probabilities *= weights_S[part, None]
            grad[part] = probabilities.to(head_V_D.dtype) @ head_V_D
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(losses)
        return (losses * weights_S).sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0].to(grad.dtype), None, None, None


# torch leaves `apply` untyped.
_chunked: Any = _ChunkedCrossEntropy.apply
