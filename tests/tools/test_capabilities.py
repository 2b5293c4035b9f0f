"""Memory arithmetic of serving."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.capabilities import (
    SPARK,
    inference_envelope,
    kv_cache_bytes,
    practical_inference_envelope,
    weight_bytes,
)
from tools.errors import CapabilityError
from tools.hardware import ModelShape

LLAMA_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 128256, tied=False)


def test_the_cache_of_a_known_model() -> None:
    # Llama 3.1 8B keeps 128 KiB a token in bf16, so 8192 tokens keep 1 GiB.
    assert kv_cache_bytes(hidden=1024, n_layers=32, ctx=8192, batch=1, dtype="bf16") == 2**30
    assert kv_cache_bytes(hidden=1024, n_layers=32, ctx=8192, batch=4, dtype="FP8") == 2 * 2**30


def test_the_weights_of_a_known_model() -> None:
    assert weight_bytes(params_b=70, dtype="bf16") == 140_000_000_000
    assert weight_bytes(params_b=70, dtype="int4") == 35_000_000_000


@pytest.mark.parametrize(
    "wrong", [{"hidden": 0}, {"n_layers": -1}, {"ctx": 0}, {"batch": 0}, {"dtype": "fp7"}]
)
def test_sizes_and_precisions_that_cannot_be_are_refused(wrong: dict[str, int | str]) -> None:
    good: dict[str, int | str] = {"hidden": 8, "n_layers": 1, "ctx": 1, "batch": 1, "dtype": "bf16"}
    with pytest.raises(CapabilityError, match=next(iter(wrong))):
        kv_cache_bytes(**{**good, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("params_b", [0, -1, float("nan"), float("inf")])
def test_a_number_of_weights_that_cannot_be_is_refused(params_b: float) -> None:
    with pytest.raises(CapabilityError, match="params_b"):
        weight_bytes(params_b=params_b, dtype="bf16")


def test_the_longest_context_is_the_edge_of_what_fits() -> None:
    longest = inference_envelope(LLAMA_8B, hardware=SPARK, ctx=1).longest_context
    assert longest > 100_000
    assert inference_envelope(LLAMA_8B, hardware=SPARK, ctx=longest).fits
    assert not inference_envelope(LLAMA_8B, hardware=SPARK, ctx=longest + 1).fits
    small = replace(SPARK, memory_available_bytes=8 * 2**30)
    assert inference_envelope(LLAMA_8B, hardware=small, ctx=1).longest_context == 0


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("8B params bf16", "fits with room: 16 GB"),
        (" 70b PARAMS fp8 ", "fits with room: 70 GB"),
        ("100B fp8", "tight: 100 GB"),
        ("70B params bf16", "out of envelope: 140 GB"),
        ("405B+ params", "out of envelope: 202 GB of weights in int4"),
        ("0.6B", "fits with room: 0.3 GB"),
    ],
)
def test_a_size_is_placed_in_the_envelope_of_a_spark(size: str, said: str) -> None:
    assert practical_inference_envelope(size).startswith(said)


@pytest.mark.parametrize("size", ["", "large", "8", "B", "8B params fp7", "8B params bf16 extra"])
def test_what_names_no_size_is_refused(size: str) -> None:
    with pytest.raises(CapabilityError):
        practical_inference_envelope(size)
