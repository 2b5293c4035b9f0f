from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import tiny_model
from tests.tools.engine.conftest import write_rows
from tools.engine import row_loss
from tools.engine.adapter_files import load_adapter
from tools.engine.base import LoadedBase
from tools.engine.batches import EncodedRow, RowEncoder
from tools.engine.row_loss import row_losses
from tools.engine.spec import StackMember
from tools.engine.trainer import train_stack


@torch.no_grad()
def expected_losses(model: torch.nn.Module, rows: tuple[EncodedRow, ...]) -> list[float]:
    """Row by row, all logits, the loss as torch computes it."""
    found = []
    for row in rows:
        logits = model(torch.tensor([row.input_ids])).logits[0]
        labels = torch.tensor([t if m else -100 for t, m in zip(row.input_ids, row.loss_mask, strict=True)])
        found.append(float(F.cross_entropy(logits[:-1], labels[1:])))
    return found


@pytest.mark.parametrize("pass_tokens", [1, 60, 4096])
def test_the_loss_of_each_row_is_torch_s(
    any_base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pass_tokens: int
) -> None:
    monkeypatch.setattr(row_loss, "_PASS_TOKENS", pass_tokens)
    rows = RowEncoder(any_base.tokenizer).encode(str(write_rows(tmp_path / "rows.jsonl", 9)), None).rows
    losses = row_losses(any_base, rows)
    assert [loss.mean for loss in losses] == pytest.approx(expected_losses(any_base.model, rows), rel=1e-5)
    assert [loss.n_tokens for loss in losses] == [row.n_supervised for row in rows]
    assert len({round(loss.mean, 3) for loss in losses}) > 5


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_s_loss_is_peft_s_without_dropout(
    base: LoadedBase, member: Callable[..., StackMember], tmp_path: Path
) -> None:
    from peft import PeftModel

    (result,) = train_stack(base, [member("t", max_steps=20, learning_rate=2e-2, lora_dropout=0.5)])
    adapter = load_adapter(base.stack, str(result.adapter_dir), device=base.device, dtype=torch.float32)
    rows = RowEncoder(base.tokenizer).encode(str(write_rows(tmp_path / "rows.jsonl", 9)), None).rows
    peft_model = PeftModel.from_pretrained(tiny_model(), str(result.adapter_dir)).eval()
    losses = [loss.mean for loss in row_losses(base, rows, adapter)]
    assert losses == pytest.approx(expected_losses(peft_model, rows), rel=1e-5)
    assert losses != pytest.approx([loss.mean for loss in row_losses(base, rows)], rel=1e-2)


def test_no_rows_have_no_loss(base: LoadedBase) -> None:
    assert row_losses(base, []) == ()
