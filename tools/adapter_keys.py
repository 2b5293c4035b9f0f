"""The names of an adapter's tensors: peft's live parameters, and the keys it writes to disk."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["belongs_to_another", "file_keys"]

_KINDS: Final = (
    "lora_A",
    "lora_B",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "trainable_tokens_delta",
    "modules_to_save",
)
_MARKED: Final = re.compile(rf"\.({'|'.join(_KINDS)})\.")
# torch.compile puts this before the names of what it wraps.
_COMPILED: Final = "_orig_mod."


def file_keys(name: str, adapter_name: str) -> tuple[str, ...]:
    """Return the keys under which peft may have saved a live parameter, the likeliest first.

    X.lora_A.<adapter>.weight                   X.lora_A.weight
    X.lora_magnitude_vector.<adapter>.weight    X.lora_magnitude_vector
    X.lora_embedding_A.<adapter>                X.lora_embedding_A
    X.trainable_tokens_delta.<adapter>          X.trainable_tokens_delta
    X.modules_to_save.<adapter>.weight          X.weight
    X.bias, trained without an adapter          X.bias
    """
    name = name.replace(_COMPILED, "")
    marked = _MARKED.search(name)
    if marked is None:
        return (name,)
    kind, before, after = marked[1], name[: marked.start()], name[marked.end() :]
    if after != adapter_name and not after.startswith(f"{adapter_name}."):
        return (name,)
    rest = after[len(adapter_name) :]
    if kind == "modules_to_save":
        return (f"{before}{rest}", name)
    if kind == "lora_magnitude_vector":
        return (f"{before}.{kind}", f"{before}.{kind}{rest}", name)
    return (f"{before}.{kind}{rest}", name)


def belongs_to_another(name: str, adapter_name: str) -> bool:
    """Say whether a live parameter is part of an adapter, but not of the one called adapter_name."""
    marked = _MARKED.search(name)
    if marked is None:
        return False
    after = name[marked.end() :]
    return after != adapter_name and not after.startswith(f"{adapter_name}.")
