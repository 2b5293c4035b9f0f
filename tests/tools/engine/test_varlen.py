from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_model, tiny_tokenizer
from tests.tools.engine.conftest import write_rows
from tools.engine import attention, batches, varlen
from tools.engine.attention import Document, PackedDocuments, pack_documents, pack_places
from tools.engine.base import LoadedBase, wrap_base
from tools.engine.batches import RowEncoder, StreamPart, lay_out
from tools.engine.lora import LoraShape
from tools.engine.passes import forward_backward
from tools.engine.varlen import VarlenPlan, plan_varlen


def by_segments(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: VarlenPlan, scaling: float | None
) -> torch.Tensor:
    """What the kernel promises: causal attention from each run of queries to its run of keys."""
    assert scaling is None or scaling == pytest.approx(q.shape[2] ** -0.5)
    ends = list(zip(plan.ends_q.tolist(), plan.ends_k.tolist(), strict=True))
    assert plan.max_q == max(b[0] - a[0] for a, b in itertools.pairwise(ends))
    assert plan.max_k == max(b[1] - a[1] for a, b in itertools.pairwise(ends))
    return torch.cat(
        [
            varlen._plain(q[a[0] : b[0]], k[a[1] : b[1]], v[a[1] : b[1]]).to(q.dtype)
            for a, b in itertools.pairwise(ends)
        ]
    )


def test_a_plan_tells_where_documents_end() -> None:
    plan = plan_varlen([Document(0, 0, 0, 3), Document(3, 0, 3, 5)], 8)
    assert plan is not None
    assert plan.ends_q.tolist() == plan.ends_k.tolist() == [0, 3, 8]
    assert (plan.max_q, plan.max_k, plan.source_K) == (5, 5, None)
    assert plan.ends_q.dtype == torch.int32


def test_a_shared_prefix_is_queried_once_and_stands_before_every_tail() -> None:
    documents = [Document(0, 2, 2, 1), Document(0, 2, 3, 2), Document(0, 2, 5, 0), Document(5, 0, 5, 1)]
    plan = plan_varlen(documents, 6)
    assert plan is not None
    assert plan.ends_q.tolist() == [0, 2, 3, 5, 6]
    assert plan.ends_k.tolist() == [0, 2, 5, 9, 10]
    assert plan.source_K is not None
    assert plan.source_K.tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 4, 5]


@pytest.mark.parametrize("documents", [[Document(0, 0, 0, 3)], [Document(4, 0, 4, 4), Document(0, 0, 0, 4)]])
def test_documents_that_do_not_cover_the_stream_in_order_have_no_plan(documents: list[Document]) -> None:
    assert plan_varlen(documents, 8) is None


@pytest.mark.parametrize("shares_prefix", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_losses_and_gradients_are_those_of_padded_attention(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, architecture: Any, shares_prefix: bool
) -> None:
    rows = (
        RowEncoder(tiny_tokenizer()).encode(str(write_rows(tmp_path / "rows.jsonl")), "Answer in JSON.").rows
    )
    parts = [StreamPart(rows[:4], 0.02, shares_prefix), StreamPart(rows[4:9], 0.02, shares_prefix)]
    monkeypatch.setattr(batches, "pack_places", _with_plan)
    found = []
    for has_kernel in (True, False):
        calls: list[int] = []

        def kernel(*args: Any, calls: list[int] = calls) -> torch.Tensor:
            calls.append(1)
            return by_segments(*args)

        monkeypatch.setattr(varlen, "_kernel", kernel)
        monkeypatch.setattr(attention, "has_kernel", lambda *_, yes=has_kernel: yes)
        base = wrap_base(tiny_model(architecture), tiny_tokenizer(), name="tiny")
        stream = lay_out(parts, base.device)
        plan = stream.documents.varlen
        assert plan is not None
        assert (plan.source_K is not None) == shares_prefix
        adapters = [_adapter(base, name) for name in ("a", "b")]
        losses = forward_backward(base, adapters, stream)
        assert bool(calls) == has_kernel
        found.append([*losses, *(adapter.flat.grad for adapter in adapters)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def _with_plan(documents: Sequence[Document], n_tokens: int, device: torch.device) -> PackedDocuments:
    """What lies on a CUDA device has its plan from the start."""
    plan = plan_varlen(documents, n_tokens, device)
    return dataclasses.replace(pack_places(documents, n_tokens, device), varlen=plan)


def _adapter(base: LoadedBase, name: str) -> Any:
    adapter = base.stack.new_adapter(name, LoraShape(4, 8, ("q_proj", "v_proj")), device=base.device)
    adapter.initialise(3)
    for pair in adapter.pairs.values():
        pair.b_O_R.data.fill_(0.02)
    return adapter


def test_the_check_of_a_device_sees_a_kernel_that_aligns_its_mask_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(varlen, "_kernel", by_segments)
    assert varlen._agrees(cpu, torch.float32, 4, 2, 16)

    def from_the_top(q: Any, k: Any, v: Any, plan: VarlenPlan, scaling: float | None) -> torch.Tensor:
        short = dataclasses.replace(plan, ends_k=plan.ends_q, max_k=plan.max_q)
        return by_segments(q, k[: len(q)], v[: len(q)], short, scaling)

    monkeypatch.setattr(varlen, "_kernel", from_the_top)
    assert not varlen._agrees(cpu, torch.float32, 4, 2, 16)


def test_a_kernel_that_is_missing_or_refuses_means_padding(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no kernel for this head")

    monkeypatch.setattr(varlen, "_kernel", refuse)
    assert not varlen._is_right(torch.device("cpu"), torch.bfloat16, 3, 1, 24)
    assert "no kernel for this head" in caplog.text
    assert not varlen.has_kernel(torch.device("cpu"), torch.bfloat16, 3, 1, 24)
    assert pack_documents([3, 4]).varlen is None


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (16, 8, 128), (4, 4, 32)])
def test_this_device_has_the_kernel_and_it_agrees(heads: int, kv_heads: int, size: int) -> None:
    assert varlen.has_kernel(torch.device("cuda"), torch.bfloat16, heads, kv_heads, size)
