from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import tiny_model, tiny_tokenizer
from tests.tools.engine.conftest import write_rows
from tools.engine import grouped
from tools.engine.base import LoadedBase, wrap_base
from tools.engine.batches import RowEncoder, StreamPart, lay_out
from tools.engine.grouped import grouped_linear, is_grouped
from tools.engine.lora import Adapter, LoraShape
from tools.engine.low_rank import LowRankProduct, stacked_linear
from tools.engine.passes import forward_backward

pytestmark = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped product")


def products_of(
    dtype: torch.dtype, lengths: list[int], ranks: list[int], masks: list[bool]
) -> list[LowRankProduct]:
    generator = torch.Generator().manual_seed(1)
    found, start = [], 0
    for i, (length, rank, masked) in enumerate(zip(lengths, ranks, masks, strict=True)):
        a, b = (torch.randn(size, generator=generator).to(dtype) for size in ((rank, 16), (24, rank)))
        trained = (a.float().requires_grad_(), b.float().requires_grad_())
        for factor in trained:
            factor.grad = torch.ones_like(factor)
        own = torch.Generator().manual_seed(i)

        def draw(x: torch.Tensor, own: torch.Generator = own) -> torch.Tensor:
            return (torch.rand(x.shape, generator=own) > 0.3).to(x.dtype)

        found.append(LowRankProduct(trained, a, b, 0.5 + i, start, length, draw if masked else None))
        start += length
    return found


@pytest.mark.parametrize("x_is_trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("lengths", "ranks", "masks"),
    [
        ([5, 5, 5], [8, 8, 8], [False] * 3),
        ([1, 7, 13], [4, 16, 3], [False] * 3),
        ([6, 9], [8, 8], [True, False]),
        ([4, 2, 3], [2, 8, 5], [True] * 3),
    ],
)
def test_a_grouped_product_equals_the_products_one_by_one(
    dtype: torch.dtype, lengths: list[int], ranks: list[int], masks: list[bool], x_is_trained: bool
) -> None:
    torch.manual_seed(0)
    x, weight, bias, upstream = (
        torch.randn(s).to(dtype) for s in ((1, sum(lengths), 16), (24, 16), (24,), (24,))
    )
    found = []
    for compute in (grouped_linear, stacked_linear):
        products = products_of(dtype, lengths, ranks, masks)
        inputs = x.clone().requires_grad_(x_is_trained)
        out = compute(inputs, weight, bias, products)
        (out * upstream).sum().backward()
        gradients = [factor.grad for product in products for factor in product.trained]
        found.append([out.detach(), *([inputs.grad] if x_is_trained else []), *gradients])
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.25}
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_only_runs_that_cover_all_tokens_in_half_precision_are_grouped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grouped, "_has_kernel", lambda _device: True)
    whole = products_of(torch.bfloat16, [3, 4], [8, 8], [False, False])
    x, weight = torch.zeros(1, 7, 16, dtype=torch.bfloat16), torch.zeros(24, 16)
    assert is_grouped(x, weight, whole)
    assert not is_grouped(x, weight, whole[:1])
    assert not is_grouped(x, weight, whole[1:] * 2)
    assert not is_grouped(torch.zeros(1, 8, 16, dtype=torch.bfloat16), weight, whole)
    assert not is_grouped(x.float(), weight, whole)
    assert not is_grouped(x, torch.zeros(20, 16), whole)
    with torch.no_grad():
        assert is_grouped(x, weight, whole)


def test_a_grouped_product_answers_as_the_products_one_by_one_do() -> None:
    products = products_of(torch.float32, [2, 5, 1], [4, 16, 3], [False] * 3)
    with torch.inference_mode():
        x, weight = torch.randn(8, 1, 16), torch.randn(24, 16)
        ours, expected = (f(x, weight, None, products) for f in (grouped_linear, stacked_linear))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_cpu_multiplies_one_by_one() -> None:
    assert not grouped._has_kernel(torch.device("cpu"))


def test_the_check_of_a_device_runs_both_ways_and_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert grouped._agrees(cpu)
    real = F.grouped_mm
    monkeypatch.setattr(F, "grouped_mm", lambda *args, **kwargs: real(*args, **kwargs) * 1.1)
    assert not grouped._agrees(cpu)


def adapters_on(base: LoadedBase) -> list[Adapter]:
    shapes = [LoraShape(4, 8, ("q_proj", "down_proj")), LoraShape(8, 8, ("q_proj", "down_proj"), dropout=0.2)]
    made = []
    for i, shape in enumerate(shapes):
        adapter = base.stack.new_adapter(f"a{i}", shape, device=base.device)
        adapter.initialise(i)
        for pair in adapter.pairs.values():
            pair.b_O_R.data.copy_(
                torch.randn(pair.b_O_R.shape, generator=torch.Generator().manual_seed(i)) * 0.1
            )
        made.append(adapter)
    return made


def test_a_stack_gives_the_same_losses_and_gradients_either_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = RowEncoder(tiny_tokenizer()).encode(str(write_rows(tmp_path / "rows.jsonl")), None).rows
    parts = [StreamPart(rows[:3], 0.02), StreamPart(rows[3:8], 0.02, shares_prefix=False)]
    found = []
    for has_kernel in (True, False):
        calls: list[int] = []
        monkeypatch.setattr(grouped, "_has_kernel", lambda _device, yes=has_kernel: yes)
        real = F.grouped_mm
        with monkeypatch.context() as patch:
            patch.setattr(
                F, "grouped_mm", lambda *a, real=real, n=calls, **k: (n.append(1), real(*a, **k))[1]
            )
            base = wrap_base(tiny_model().to(torch.bfloat16), tiny_tokenizer(), name="tiny")
            adapters = adapters_on(base)
            losses = forward_backward(base, adapters, lay_out(parts, base.device))
        assert bool(calls) == has_kernel
        found.append((losses, [adapter.flat.grad for adapter in adapters]))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one is not None
        assert other is not None
        assert torch.linalg.vector_norm(one - other) <= 0.05 * torch.linalg.vector_norm(other)


@pytest.mark.gpu
def test_this_device_has_the_kernel_and_it_agrees() -> None:
    assert grouped._agrees(torch.device("cuda"))
    assert grouped._has_kernel(torch.device("cuda"))
