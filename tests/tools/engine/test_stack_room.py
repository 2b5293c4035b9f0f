"""The width of a stack on the device at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model, tiny_tokenizer
from tools.engine.base import LoadedBase, wrap_base
from tools.engine.stack_room import device_hardware, stack_tokens_for
from tools.hardware import Hardware
from tools.recipe import TrainRecipe

MIB = 2**20


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return wrap_base(tiny_model(), tiny_tokenizer(), name="tiny")


@pytest.fixture
def recipe(tmp_path: Path) -> TrainRecipe:
    turns = [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y" * 100}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    return TrainRecipe("tiny", str(tmp_path / "rows.jsonl"), str(tmp_path), micro_batch_size=4)


def test_this_machines_cpu_trains_one_adapter_at_a_time(base: LoadedBase, recipe: TrainRecipe) -> None:
    hardware = device_hardware(torch.device("cpu"))
    assert hardware.kind == "cpu"
    assert 0 < hardware.memory_available_bytes <= hardware.memory_total_bytes
    assert stack_tokens_for(base, [recipe] * 4, hardware) == 0


def test_on_a_device_free_memory_and_the_longest_row_decide(base: LoadedBase, recipe: TrainRecipe) -> None:
    def tokens(free_mib: int) -> int:
        device = Hardware("cuda", "a GPU", 2**37, free_mib * MIB, 8, bf16=True)
        return stack_tokens_for(base, [recipe] * 8, device)

    roomy, tight, full = tokens(65536), tokens(16), tokens(1)
    # 400 characters and two turns are 224 tokens at most; a pass may hold the whole step.
    assert roomy % 8 == 0
    assert 8 * 4 * 150 < roomy <= 16384
    assert roomy > tight >= full
    assert full == roomy // 8


@pytest.mark.gpu
def test_a_cuda_device_tells_what_is_free_on_it() -> None:
    found = device_hardware(torch.device("cuda", 0))
    assert found.kind == "cuda"
    assert 0 < found.memory_available_bytes <= found.memory_total_bytes
