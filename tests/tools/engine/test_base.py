from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import save_tiny_base, tiny_model, tiny_tokenizer
from tools.engine.base import load_base, wrap_base
from tools.errors import ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_base(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_loads_frozen_in_the_wanted_precision(folder: Path, dtype: str) -> None:
    base = load_base(str(folder), dtype, device=torch.device("cpu"))
    assert base.dtype is getattr(torch, dtype)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    assert base.load_s > 0


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no-such-base"):
        load_base(str(tmp_path / "no-such-base"), "float32")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ModelError, match="float32"):
        load_base("anything", "int8")


def test_a_sliding_window_is_refused() -> None:
    model = tiny_model("qwen3", use_sliding_window=True, sliding_window=4, max_window_layers=0)
    with pytest.raises(ModelError, match="sliding"):
        wrap_base(model, tiny_tokenizer(), name="windowed")


def test_a_window_that_is_turned_off_is_fine() -> None:
    wrap_base(tiny_model("qwen3", use_sliding_window=False, sliding_window=4), tiny_tokenizer(), name="fine")


def test_an_architecture_that_scales_its_logits_is_caught_by_its_numbers() -> None:
    model = tiny_model()
    head = model.lm_head.forward
    model.lm_head.forward = lambda x: head(x) * 2
    with pytest.raises(ModelError, match="packed"):
        wrap_base(model, tiny_tokenizer(), name="scaled")
