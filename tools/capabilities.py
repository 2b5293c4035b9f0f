"""The capabilities of a machine for serving: weights, KV cache, and whether both fit.

Source: fieldkit.capabilities.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tools.errors import CapabilityError
from tools.hardware.machine import Hardware
from tools.hardware.shape import ModelShape

__all__ = [
    "DTYPE_BYTES",
    "SPARK",
    "Envelope",
    "inference_envelope",
    "kv_cache_bytes",
    "practical_inference_envelope",
    "weight_bytes",
]

DTYPE_BYTES: Final[Mapping[str, float]] = MappingProxyType(
    {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5, "nf4": 0.5}
)
"""Bytes a number takes in each precision."""

SPARK: Final = Hardware(
    kind="cuda",
    name="NVIDIA GB10",
    memory_total_bytes=128_000_000_000,
    # The system itself leaves 119 to 122 GiB of the 128 GB.
    memory_available_bytes=119 * 2**30,
    cores=20,
    bf16=True,
    unified=True,
    compute_capability="12.1",
)
"""A DGX Spark at rest. Running its shared memory out can reset the whole machine."""

_COMFORTABLE: Final = 0.6
_LARGEST: Final = 0.85
_GB: Final = 1e9
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*b\+?(?:\s+params)?(?:\s+([a-z0-9]+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Envelope:
    """What serving a model takes on a machine."""

    weight_bytes: int
    kv_cache_bytes: int
    available_bytes: int
    """What of the free memory serving may plan with."""
    longest_context: int
    """Tokens of context a sequence that fit beside the weights; 0 where the weights do not fit."""

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_cache_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.available_bytes


def kv_cache_bytes(*, hidden: int, n_layers: int, ctx: int, batch: int, dtype: str) -> int:
    """Return the memory of keys and values: 2 x layers x width x context x batch x bytes.

    Args:
        hidden: Width of a layer's keys: KV heads times head size, which is the model's own
            width only where every query head has keys of its own.
        n_layers: Decoder layers.
        ctx: Tokens of context.
        batch: Sequences at once.
        dtype: A key of DTYPE_BYTES.
    Raises:
        CapabilityError: a size below 1, or an unknown precision.
    """
    for name, size in (("hidden", hidden), ("n_layers", n_layers), ("ctx", ctx), ("batch", batch)):
        if size < 1:
            raise CapabilityError(f"{name} is {size}; it must be 1 or more")
    return int(2 * n_layers * hidden * ctx * batch * _dtype_bytes(dtype))


def weight_bytes(*, params_b: float, dtype: str) -> int:
    """Return the memory of a model's weights.

    Args:
        params_b: Weights in billions.
        dtype: A key of DTYPE_BYTES.
    Raises:
        CapabilityError: params_b is not above 0, or an unknown precision.
    """
    if not 0 < params_b < float("inf"):
        raise CapabilityError(f"params_b is {params_b}; it must be a number of billions above 0")
    return int(params_b * 1e9 * _dtype_bytes(dtype))


def inference_envelope(
    shape: ModelShape,
    *,
    hardware: Hardware,
    ctx: int,
    batch: int = 1,
    dtype: str = "bf16",
    kv_dtype: str | None = None,
) -> Envelope:
    """Return what serving a model takes, and the longest context that would fit.

    Args:
        shape: The model's sizes.
        hardware: Where it is served; `SPARK`, or what `detect` finds.
        ctx: Tokens of context a sequence.
        batch: Sequences at once.
        dtype: Precision of the weights.
        kv_dtype: Precision of the cache; None takes bf16, which quantised weights keep too.
    Raises:
        CapabilityError: a size below 1, or an unknown precision.
    """
    weights = weight_bytes(params_b=shape.n_params / 1e9, dtype=dtype)
    kept = kv_dtype or ("fp32" if dtype == "fp32" else "bf16")
    cache = kv_cache_bytes(hidden=shape.kv_width, n_layers=shape.n_layers, ctx=ctx, batch=batch, dtype=kept)
    available = int(_LARGEST * hardware.memory_available_bytes)
    per_token = cache // ctx
    return Envelope(weights, cache, available, max(0, available - weights) // max(1, per_token))


def practical_inference_envelope(model_size: str, *, hardware: Hardware = SPARK) -> str:
    """Say in words whether a model of a size such as `70B params fp8` can be served.

    Without a precision, int4 is assumed: what does not fit then does not fit at all.

    Raises:
        CapabilityError: model_size names no size, or an unknown precision.
    """
    match = _SIZE.fullmatch(model_size.strip())
    if match is None:
        raise CapabilityError(f"model size is {model_size[:80]!r}; write it as '8B params bf16'")
    dtype = match[2] or "int4"
    weights = weight_bytes(params_b=float(match[1]), dtype=dtype)
    free = hardware.memory_available_bytes
    said = f"{weights / _GB:.3g} GB of weights in {dtype.lower()}"
    left = (
        f"{max(0.0, free - weights) / _GB:.0f} GB of {free / _GB:.0f} GB left for the KV cache and the rest"
    )
    if weights > _LARGEST * free:
        return f"out of envelope: {said}, {free / _GB:.0f} GB free; take a smaller model or precision"
    if weights > _COMFORTABLE * free:
        return f"tight: {said}; {left}"
    return f"fits with room: {said}; {left}"


def _dtype_bytes(dtype: str) -> float:
    try:
        return DTYPE_BYTES[dtype.lower()]
    except KeyError:
        raise CapabilityError(f"dtype is {dtype[:80]!r}; allowed: {sorted(DTYPE_BYTES)}") from None
