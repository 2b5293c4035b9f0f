"""The weights of a saved adapter, as far as it takes to tell whether it was trained."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from tools.errors import AdapterFileError, WeightsError

__all__ = ["AdapterWeights", "read_adapter_weights"]

_FILE: Final = "adapter_model.safetensors"
_MOST_HEADER_BYTES: Final = 100_000_000
_BLOCK: Final = 1 << 20
# An adapter starts with this factor at zero, so that it changes nothing before its first step.
_ZERO_AT_START: Final = ("lora_B", "lora_embedding_B")


@dataclass(frozen=True)
class AdapterWeights:
    """What tells one adapter from another."""

    digest: str
    """SHA-256 over names, shapes and values; the file's other metadata is left out."""
    has_moved: bool
    """Whether any factor that starts at zero is no longer zero."""


def read_adapter_weights(folder: Path) -> AdapterWeights:
    """Return the weights of the adapter in a folder. Loads no library and no more than a block at once.

    Raises:
        AdapterFileError: there is no adapter.
        WeightsError: the file is torn or no safetensors file.
    """
    path = folder / _FILE
    if not path.is_file():
        raise AdapterFileError(f"no {_FILE} in {folder}; name an iter_NNNNNNN folder of a run")
    digest, has_moved = hashlib.sha256(), False
    with path.open("rb") as file:
        start, tensors = _read_header(file, path)
        size = path.stat().st_size - start
        for name in sorted(tensors):
            begin, end = _offsets(tensors[name], size, path)
            told = (name, tensors[name].get("dtype"), tensors[name].get("shape"))
            digest.update(json.dumps(told).encode("utf-8"))
            starts_at_zero = any(part in name for part in _ZERO_AT_START)
            file.seek(start + begin)
            left = end - begin
            while left:
                block = file.read(min(_BLOCK, left))
                if not block:
                    raise WeightsError(f"{path} ends inside {name}; the file is torn")
                digest.update(block)
                has_moved = has_moved or (starts_at_zero and any(block))
                left -= len(block)
    return AdapterWeights(digest.hexdigest(), has_moved)


def _read_header(file: BinaryIO, path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    raw = file.read(8)
    length = struct.unpack("<Q", raw)[0] if len(raw) == 8 else 0
    if not 2 <= length <= _MOST_HEADER_BYTES:
        raise WeightsError(f"{path} is no safetensors file: its header would have {length} bytes")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as err:
        raise WeightsError(f"{path} has a header that is no JSON; the file is torn") from err
    tensors = {name: told for name, told in header.items() if name != "__metadata__"} if header else {}
    if not tensors or not all(isinstance(told, dict) for told in tensors.values()):
        raise WeightsError(f"{path} names no tensor")
    return 8 + length, tensors


def _offsets(told: dict[str, Any], size: int, path: Path) -> tuple[int, int]:
    offsets = told.get("data_offsets")
    if isinstance(offsets, list) and len(offsets) == 2 and all(type(one) is int for one in offsets):
        begin, end = offsets
        if 0 <= begin <= end <= size:
            return begin, end
    raise WeightsError(f"{path} names bytes that it does not hold; the file is torn")
