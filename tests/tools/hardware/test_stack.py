"""How many adapters train side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.errors import HardwareError
from tools.hardware import Hardware, ModelShape, choose_stack, estimate
from tools.recipe import TrainRecipe

GIB = 2**30
H200 = Hardware("cuda", "NVIDIA H200", 140 * GIB, 139 * GIB, 16, bf16=True)
SPARK = Hardware("cuda", "GB10", 119 * GIB, 100 * GIB, 20, bf16=True, unified=True)
SMOL = ModelShape(30, 576, 1536, 9, 3, 64, 49152, tied=True)
LLAMA_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 128256, tied=False)
RECIPE = TrainRecipe("base", "train.jsonl", "out", lora_dropout=0.0, micro_batch_size=4)


def test_on_a_cpu_adapters_train_one_at_a_time() -> None:
    box = Hardware("cpu", "a box", 32 * GIB, 24 * GIB, 8, bf16=True)
    choice = choose_stack([RECIPE] * 8, SMOL, box, row_tokens=256)
    assert (choice.stack_tokens, choice.members) == (0, 1)


def test_all_of_a_small_models_adapters_share_a_pass() -> None:
    choice = choose_stack([RECIPE] * 8, SMOL, H200, row_tokens=256)
    assert choice.members == 8
    assert choice.stack_tokens == 8 * 1024


def test_a_pass_is_never_wider_than_a_device_can_use() -> None:
    recipes = [RECIPE.replace(micro_batch_size=8, global_batch_size=8)] * 32
    choice = choose_stack(recipes, SMOL, H200, row_tokens=512)
    assert choice.members == 4
    assert choice.stack_tokens == 16384


@pytest.mark.parametrize("free_gib", [40, 60, 80, 100])
def test_what_is_chosen_fits_and_one_more_would_not(free_gib: int) -> None:
    machine = replace(SPARK, memory_available_bytes=free_gib * GIB)
    recipes = [RECIPE.replace(micro_batch_size=1)] * 16
    n = choose_stack(recipes, LLAMA_8B, machine, row_tokens=2048).members
    assert 1 <= n <= 8
    assert estimate(recipes[0], LLAMA_8B, machine, row_tokens=2048, members=n).fits
    more = estimate(recipes[0], LLAMA_8B, machine, row_tokens=2048, members=n + 1)
    assert n == 8 or not more.fits


def test_memory_that_a_loaded_base_has_left_is_not_charged_for_it_again() -> None:
    left = replace(SPARK, memory_available_bytes=30 * GIB)
    recipes = [RECIPE.replace(micro_batch_size=1)] * 8
    after = choose_stack(recipes, LLAMA_8B, left, row_tokens=2048, base_is_loaded=True)
    assert after.members > choose_stack(recipes, LLAMA_8B, left, row_tokens=2048).members


def test_one_is_seated_even_where_nothing_fits_and_none_is_an_error() -> None:
    full = replace(SPARK, memory_available_bytes=GIB)
    assert choose_stack([RECIPE] * 3, LLAMA_8B, full, row_tokens=2048).members == 1
    with pytest.raises(HardwareError, match="no recipe"):
        choose_stack([], SMOL, H200, row_tokens=10)
