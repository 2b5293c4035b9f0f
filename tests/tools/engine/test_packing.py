"""The engine's losses and gradients against plain transformers and peft, a row at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import tiny_model, tiny_tokenizer
from tests.tools.engine.conftest import metrics_of, write_rows
from tools.engine.adapter_files import write_adapter
from tools.engine.base import LoadedBase, wrap_base
from tools.engine.batches import EncodedRow, RowEncoder, StreamPart, lay_out
from tools.engine.lora import Adapter, LoraShape
from tools.engine.spec import StackMember
from tools.engine.trainer import forward_backward, train_stack

# peft asks transformers for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

SHAPES = [
    LoraShape(4, 8, ("q_proj", "v_proj")),
    LoraShape(
        3, 5, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), use_rslora=True
    ),
    LoraShape(2, 4, ("down_proj", "self_attn.o_proj"), layers=(1,)),
]


def random_adapter(base: LoadedBase, shape: LoraShape) -> Adapter:
    """An adapter whose B is not zero, as after some training."""
    adapter = base.stack.new_adapter("a", shape, device=base.device)
    adapter.initialise(3)
    generator = torch.Generator().manual_seed(4)
    for pair in adapter.pairs.values():
        pair.b_O_R.data.copy_(torch.randn(pair.b_O_R.shape, generator=generator) * 0.3)
    return adapter


def with_peft(architecture: Any, adapter: Adapter, folder: Path) -> Any:
    from peft import PeftModel

    folder.mkdir()
    write_adapter(folder, adapter, "tiny")
    return PeftModel.from_pretrained(tiny_model(architecture), folder, is_trainable=True).eval()


def plain_loss(model: Any, rows: tuple[EncodedRow, ...]) -> torch.Tensor:
    """Mean over all supervised tokens, one unpacked row at a time, all logits computed."""
    total, count = torch.zeros(()), 0
    for row in rows:
        ids = torch.tensor([row.input_ids])
        labels = torch.tensor(
            [t if wanted else -100 for t, wanted in zip(row.input_ids, row.loss_mask, strict=True)]
        )
        logits = model(ids).logits[0, :-1]
        total = total + F.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
        count += int((labels[1:] != -100).sum())
    return total / count


@pytest.mark.parametrize("shares_prefix", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_loss_and_gradients_equal_peft_row_by_row(
    architecture: Any, shape: LoraShape, shares_prefix: bool, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    base = wrap_base(tiny_model(architecture), tokenizer, name="tiny")
    rows = RowEncoder(tokenizer).encode(str(write_rows(tmp_path / "rows.jsonl")), None).rows
    adapter = random_adapter(base, shape)
    weight = 1 / sum(row.n_supervised for row in rows)
    stream = lay_out([StreamPart(rows, weight, shares_prefix)], base.device)
    n_tokens = sum(row.n_read for row in rows)
    assert (stream.input_ids_1_N.shape[1] < n_tokens) == shares_prefix
    (loss,) = forward_backward(base, [adapter], stream)
    model = with_peft(architecture, adapter, tmp_path / "adapter")
    expected = plain_loss(model, rows)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    twins = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(twins) == 2 * len(adapter.pairs)
    for path, pair in adapter.pairs.items():
        for letter, tensor in (("A", pair.a_R_I), ("B", pair.b_O_R)):
            twin = twins[f"base_model.model.{path}.lora_{letter}.default.weight"]
            torch.testing.assert_close(tensor.grad, twin.grad, rtol=1e-4, atol=1e-6)


def test_neighbours_change_neither_loss_nor_gradient(any_base: LoadedBase, tmp_path: Path) -> None:
    rows = RowEncoder(any_base.tokenizer).encode(str(write_rows(tmp_path / "rows.jsonl")), None).rows
    adapters = [random_adapter(any_base, shape) for shape in SHAPES]
    parts = [StreamPart(rows[i : i + 3], 0.1) for i in range(3)]
    together = forward_backward(any_base, adapters, lay_out(parts, any_base.device))
    for shape, adapter, part, loss in zip(SHAPES, adapters, parts, together, strict=True):
        alone = random_adapter(any_base, shape)
        (single,) = forward_backward(any_base, [alone], lay_out([part], any_base.device))
        torch.testing.assert_close(loss, single)
        torch.testing.assert_close(adapter.flat.grad, alone.flat.grad)


def test_a_run_equals_peft_with_torch_adamw(
    base: LoadedBase, member: Callable[..., StackMember], tmp_path: Path
) -> None:
    """The same rows, optimizer and schedule by hand: losses of six steps agree."""
    from tools.engine.batches import rows_of_step
    from tools.engine.schedule import learning_rate_at

    one = member("t", weight_decay=0.05, max_grad_norm=0.5)
    train_stack(base, [one])
    fresh = base.stack.new_adapter("fresh", LoraShape.of(one.recipe), device=base.device)
    fresh.initialise(one.recipe.seed)
    model = with_peft("llama", fresh, tmp_path / "adapter")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    rows = RowEncoder(base.tokenizer).encode(one.recipe.dataset_jsonl, None).rows
    losses = []
    for step in range(6):
        batch = tuple(rows[i] for i in rows_of_step(len(rows), 4, one.recipe.seed, step))
        optimizer.param_groups[0]["lr"] = learning_rate_at(one.recipe, step, 6)
        loss = plain_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert [line["loss"] for line in metrics_of(one)] == pytest.approx(losses, rel=1e-5)
