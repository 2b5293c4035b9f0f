"""Adapters on disk, in peft's own format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from tools.engine.lora import Adapter, AdapterStack, LoraShape
from tools.errors import ModelError

__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "load_adapter", "load_weights", "write_adapter"]

ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
ADAPTER_CONFIG: Final = "adapter_config.json"
_PREFIX: Final = "base_model.model."
# Settings of peft that change what an adapter computes, with the values that mean plain LoRA.
_PLAIN: Final[dict[str, tuple[Any, ...]]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "alpha_pattern": ({}, None),
    "rank_pattern": ({}, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "exclude_modules": (None, []),
}


def write_adapter(folder: Path, adapter: Adapter, base_name: str) -> None:
    """Write an adapter so that `PeftModel.from_pretrained` loads it. Not atomic: the caller is."""
    from safetensors.torch import save_file

    tensors = {slot.key: slot.tensor.detach().to("cpu", copy=True) for slot in _slots(adapter)}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(_config(adapter.shape, base_name), indent=2, ensure_ascii=False) + "\n"
    (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def load_adapter(
    stack: AdapterStack,
    folder: str | Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    name: str = "adapter",
) -> Adapter:
    """Read an adapter for inference and take its seats in the model.

    Raises:
        ModelError: no adapter there, one of another base, or one that is not plain LoRA.
    """
    shape = read_shape(folder)
    adapter = stack.new_adapter(name, shape, device=device, dtype=dtype, trainable=False)
    load_weights(adapter, folder)
    return adapter


def read_shape(folder: str | Path) -> LoraShape:
    """Read an adapter's structure.

    Raises:
        ModelError: the config is missing, unreadable or asks for more than plain LoRA.
    """
    path = Path(folder) / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        special = [key for key, plain in _PLAIN.items() if config.get(key, plain[0]) not in plain]
        if special:
            raise ModelError(f"{path}: {', '.join(special)} make this more than plain LoRA; merge it instead")
        targets, layers = config["target_modules"], config.get("layers_to_transform")
        if isinstance(targets, str):
            raise ModelError(f"{path}: target_modules is the pattern {targets!r}; a list of names is needed")
        return LoraShape(
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            targets=tuple(targets),
            layers=None if layers is None else tuple([layers] if isinstance(layers, int) else layers),
            use_rslora=bool(config.get("use_rslora", False)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise ModelError(f"{path} is no adapter's config: {err!r}") from err


def load_weights(adapter: Adapter, folder: str | Path) -> None:
    """Fill an adapter's factors from disk.

    Raises:
        ModelError: the file is missing or torn, or its tensors are not exactly the adapter's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / ADAPTER_WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as err:
        raise ModelError(f"{path} cannot be read: {err}") from err
    for slot in _slots(adapter):
        found = tensors.pop(slot.key, None)
        if found is None or found.shape != slot.tensor.shape:
            shape = None if found is None else tuple(found.shape)
            raise ModelError(f"{path}: {slot.key} is {shape}; this base needs {tuple(slot.tensor.shape)}")
        with torch.no_grad():
            slot.tensor.copy_(found)
    if tensors:
        raise ModelError(f"{path} holds tensors that fit no layer of this base: {sorted(tensors)[:5]}")


@dataclass(frozen=True)
class _Slot:
    key: str
    tensor: torch.Tensor


def _slots(adapter: Adapter) -> list[_Slot]:
    return [
        _Slot(f"{_PREFIX}{path}.lora_{letter}.weight", tensor)
        for path, pair in adapter.pairs.items()
        for letter, tensor in (("A", pair.a_R_I), ("B", pair.b_O_R))
    ]


def _config(shape: LoraShape, base_name: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "lora_dropout": shape.dropout,
        "target_modules": list(shape.targets),
        "layers_to_transform": None if shape.layers is None else list(shape.layers),
        "use_rslora": shape.use_rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
