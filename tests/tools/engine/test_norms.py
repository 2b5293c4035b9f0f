from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import tiny_model
from tools.engine.norms import fuse_norms


class OneMore(torch.nn.Module):
    """A norm whose weight counts from one, as in Gemma."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((8,), 0.5), requires_grad=False)
        self.variance_epsilon = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * (1 + self.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("architecture", "n_norms"), [("llama", 5), ("qwen3", 9)])
def test_every_norm_gives_the_same_and_its_gradient_too(
    architecture: Any, n_norms: int, dtype: torch.dtype
) -> None:
    plain, fused = (tiny_model(architecture).to(dtype).requires_grad_(False) for _ in range(2))
    assert fuse_norms(fused) == n_norms
    assert fuse_norms(fused) == 0
    upstream = torch.randn(
        len(plain.get_input_embeddings().weight[0]), generator=torch.Generator().manual_seed(0)
    )
    embeds = plain.get_input_embeddings()(torch.arange(20)[None])
    found = []
    for model in (plain, fused):
        inputs = embeds.clone().requires_grad_()
        hidden = model.get_decoder()(inputs_embeds=inputs).last_hidden_state
        (gradient,) = torch.autograd.grad((hidden.float() * upstream).sum(), inputs)
        found.append((hidden, gradient))
    assert torch.equal(found[0][0], found[1][0])
    gap = torch.linalg.vector_norm((found[0][1] - found[1][1]).float())
    limit = 1e-5 if dtype == torch.float32 else 0.03
    assert gap <= limit * torch.linalg.vector_norm(found[0][1].float())


def test_a_norm_of_another_kind_stays_as_it_is() -> None:
    model = torch.nn.Sequential(OneMore(), torch.nn.LayerNorm(8))
    assert fuse_norms(model) == 0


def test_less_is_kept_for_the_backward_pass() -> None:
    kept = []
    for fused in (False, True):
        (norm,) = [
            m for n, m in tiny_model().bfloat16().requires_grad_(False).named_modules() if n == "model.norm"
        ]
        if fused:
            assert fuse_norms(norm) == 1
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            norm(torch.randn(50, len(norm.weight), dtype=torch.bfloat16, requires_grad=True))
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.6 * kept[0]
