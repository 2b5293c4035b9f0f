from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import tools.engine.loss as loss_module
from tools.engine.loss import supervised_loss


@pytest.mark.parametrize("chunk_bytes", [4 * 50 * 3, 4 * 50 * 100, 1])
def test_loss_and_gradient_equal_plain_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(loss_module, "_CHUNK_BYTES", {"cpu": chunk_bytes})
    torch.manual_seed(0)
    # Spread wide: the likeliest token is sometimes certain, the target sometimes impossible.
    hidden = (torch.randn(10, 16) * torch.logspace(-1, 2, 10)[:, None]).requires_grad_()
    twin = hidden.detach().clone().requires_grad_()
    head, targets, weights = torch.randn(50, 16), torch.randint(50, (10,)), torch.rand(10)
    found = supervised_loss(hidden, head, targets, weights)
    plain = F.cross_entropy(twin @ head.t(), targets, reduction="none")
    torch.testing.assert_close(found.per_token_S, plain)
    torch.testing.assert_close(found.total, (plain * weights).sum())
    found.total.backward()
    (plain * weights).sum().backward()
    torch.testing.assert_close(hidden.grad, twin.grad, rtol=1e-4, atol=1e-4)
