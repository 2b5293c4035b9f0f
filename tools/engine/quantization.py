"""A base held in 4 bits a weight, as bitsandbytes stores it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tools.errors import ModelError
from tools.extras import require_extra
from tools.recipe import Quantization

__all__ = ["keep_differentiable", "loading_options"]


def loading_options(
    kind: Quantization, name: str, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Return what `from_pretrained` needs to load a base in a quantization, on a device.

    Raises:
        MissingExtraError: the extra `quant` is not installed.
        ModelError: it cannot be had on this device or from this file.
    """
    if kind == "none":
        return {}
    if device.type not in ("cuda", "cpu"):
        raise ModelError(
            f"quantization is {kind!r}, which runs on CUDA and on a CPU, not on {device.type}; set it to none"
        )
    if name.endswith(".gguf"):
        raise ModelError(
            f"quantization is {kind!r}, but {name} is a .gguf file, which is unpacked when it is loaded; "
            "give a folder in Hugging Face layout, or set quantization to none"
        )
    require_extra("quant", purpose=f"quantization {kind!r}")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def keep_differentiable(model: nn.Module) -> None:
    """Keep 4-bit layers from repacking their weights for inference on a CPU: gradients stop there."""
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
