"""The perplexity of token rows, beside what transformers gives."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tiny import save_tiny_base, tiny_model, tiny_tokenizer
from tools.engine.base import wrap_base
from tools.errors import TrainError
from tools.pretraining.perplexity import measure_perplexity, perplexity_of
from tools.token_rows import TokenRow, write_token_rows

ROWS = [TokenRow(str(n), tuple((5 * n + 3 * i) % 300 for i in range(4 + 37 * n))) for n in range(6)]


def reference(model: torch.nn.Module) -> tuple[float, int]:
    """The mean loss by transformers' own labels, one row at a time."""
    total, count = 0.0, 0
    for row in ROWS:
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            mean = model(input_ids=ids, labels=ids).loss.item()
        total, count = total + mean * (len(row.input_ids) - 1), count + len(row.input_ids) - 1
    return total / count, count


@pytest.mark.parametrize("pass_tokens", [1, 100, 4096])
def test_it_is_what_transformers_gives_row_by_row(monkeypatch, pass_tokens):
    torch.set_num_threads(1)
    monkeypatch.setattr("tools.engine.row_loss._PASS_TOKENS", pass_tokens)
    model = tiny_model()
    wanted, count = reference(model)
    found = measure_perplexity(wrap_base(model, tiny_tokenizer(), name="tiny"), ROWS)
    assert found.loss == pytest.approx(wanted, rel=1e-5)
    assert found.n_tokens == count
    assert found.perplexity == pytest.approx(math.exp(wanted), rel=1e-4)


def test_a_process_of_its_own_says_the_same_or_why_not(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    save_tiny_base(tmp_path / "base")
    rows = write_token_rows(tmp_path / "r.tokens.jsonl", ROWS)
    wanted, _ = reference(tiny_model())
    found = perplexity_of(str(tmp_path / "base"), rows, dtype="float32", work=tmp_path / "before")
    assert found.loss == pytest.approx(wanted, rel=1e-5)
    rows.write_text('{"id": "a", "input_ids": [1, 99999]}\n', encoding="utf-8")
    with pytest.raises(TrainError, match=r"whole numbers in \[0, 384\)"):
        perplexity_of(str(tmp_path / "base"), rows, dtype="float32", work=tmp_path / "before")


def test_broken_weights_are_an_error_and_no_number():
    model = tiny_model()
    base = wrap_base(model, tiny_tokenizer(), name="tiny")
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(TrainError, match="weights are broken"):
        measure_perplexity(base, ROWS[:1])
