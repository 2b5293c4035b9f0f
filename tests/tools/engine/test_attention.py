from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from tools.engine.attention import pack_documents, packed_attention
from tools.errors import ModelError


class Causal(torch.nn.Module):
    is_causal = True


def expected_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int]
) -> torch.Tensor:
    parts, start = [], 0
    for length in lengths:
        q, k, v = (x[:, :, start : start + length] for x in (query, key, value))
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
        start += length
    return torch.cat(parts, dim=2).transpose(1, 2)


@pytest.mark.parametrize("lengths", [[5], [4, 4, 4], [9, 1, 3, 8, 2], [1, 1], [30, 7, 29, 28], [140, 3, 135]])
def test_documents_attend_to_themselves_alone(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    n = sum(lengths)
    inputs = [torch.randn(1, heads, n, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2)]
    twins = [x.detach().clone().requires_grad_() for x in inputs]
    out, weights = packed_attention(Causal(), *inputs, None, documents=pack_documents(lengths))
    expected = expected_attention(*twins, lengths)
    assert weights is None
    torch.testing.assert_close(out, expected)
    upstream = torch.randn(out.shape, generator=generator)
    out.backward(upstream)
    expected.backward(upstream)
    for x, twin in zip(inputs, twins, strict=True):
        torch.testing.assert_close(x.grad, twin.grad)


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_broken_document_does_not_reach_its_neighbours(broken: int) -> None:
    lengths = [6, 3, 4]
    bad = range(sum(lengths[:broken]), sum(lengths[: broken + 1]))
    good = [i for i in range(13) if i not in bad]
    inputs = [torch.randn(1, heads, 13, 8) for heads in (4, 2, 2)]
    poisoned = [x.clone() for x in inputs]
    for x in poisoned:
        x[:, :, list(bad)] = float("nan")
        x.requires_grad_()
    packed = pack_documents(lengths)
    assert packed.n_slots > 13  # the shorter two share a bucket, so that there is padding
    out, _ = packed_attention(Causal(), *poisoned, None, documents=packed)
    clean = expected_attention(*inputs, lengths)
    torch.testing.assert_close(out[:, good], clean[:, good])
    out.sum().backward()
    assert all(bool(x.grad[:, :, good].isfinite().all()) for x in poisoned)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_every_token_has_a_place_of_its_own(lengths: list[int]) -> None:
    packed = pack_documents(lengths)
    slots = packed.slot_N.tolist()
    assert len(set(slots)) == len(slots) == sum(lengths)
    assert packed.n_slots == sum(bucket.n_documents * bucket.width for bucket in packed.buckets)
    assert max(slots) < packed.n_slots
    assert sum(bucket.n_documents for bucket in packed.buckets) == len(lengths)
    # Padding stays below a third of the real tokens.
    assert packed.n_slots <= sum(lengths) / 0.75 + len(lengths)


@pytest.mark.parametrize("special", [{"sliding_window": 4}, {"softcap": 30.0}, {"dropout": 0.1}])
def test_attention_of_another_kind_is_refused(special: dict[str, float]) -> None:
    q, k, v = (torch.randn(1, 2, 3, 8) for _ in range(3))
    with pytest.raises(ModelError, match="plain causal"):
        packed_attention(Causal(), q, k, v, None, documents=pack_documents([3]), **special)  # type: ignore[arg-type]


def test_a_model_that_hands_on_no_documents_is_refused() -> None:
    q, k, v = (torch.randn(1, 2, 3, 8) for _ in range(3))
    with pytest.raises(ModelError, match="does not hand on"):
        packed_attention(Causal(), q, k, v, None)
