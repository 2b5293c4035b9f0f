"""Putting a peft adapter of any kind on a loaded base."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.engine.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_adapter, read_shape
from tools.engine.base import LoadedBase, wrap_base
from tools.errors import ModelError

if TYPE_CHECKING:
    from tools.engine.lora import Adapter

__all__ = ["place_adapter"]


def place_adapter(base: LoadedBase, folder: str | Path) -> tuple[LoadedBase, Adapter | None]:
    """Return the base to answer with, and the adapter to place on it.

    Plain LoRA stays an adapter. Any other kind (DoRA, patterns of ranks or of modules, trained
    heads) is merged into the base by peft, and there is no adapter left to place.

    Raises:
        ModelError: the folder holds no adapter, or one that does not fit the base.
        ImportError: the adapter is not plain LoRA and peft is missing.
    """
    try:
        read_shape(folder)
    except ModelError as err:
        if not (Path(folder) / ADAPTER_CONFIG).is_file():
            raise
        return _merged(base, Path(folder), err), None
    return base, load_adapter(base.stack, folder, device=base.device, dtype=base.dtype)


def _merged(base: LoadedBase, folder: Path, reason: ModelError) -> LoadedBase:
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as err:
        raise ImportError(
            f"{reason}. This probe leaves that to peft, which is missing: pip install 'bakehouse[train]'",
            name=err.name,
        ) from err
    from safetensors import SafetensorError, safe_open

    try:
        with warnings.catch_warnings():
            # Its hints on tied weights and training settings mean nothing here.
            warnings.simplefilter("ignore")
            wrapped = PeftModel.from_pretrained(base.model, str(folder))
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            held = set(file.keys())
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as err:
        raise ModelError(f"{reason}; peft cannot load it either: {err}") from err
    _check_keys(folder, held, set(get_peft_model_state_dict(wrapped)))
    merged: Any = wrapped.merge_and_unload()
    return wrap_base(merged, base.tokenizer, name=base.name, load_s=base.load_s)


def _check_keys(folder: Path, held: set[str], needed: set[str]) -> None:
    """Refuse an adapter of another base, which peft would load in part without a word."""
    if held != needed:
        raise ModelError(
            f"{folder / ADAPTER_WEIGHTS} does not fit this base: it lacks {sorted(needed - held)[:3]} "
            f"and holds {sorted(held - needed)[:3]} that fit nowhere"
        )
