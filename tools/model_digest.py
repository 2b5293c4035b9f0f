"""The digest of a base model: whether what lies under its name is still what was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.errors import ModelError
from tools.models import resolve_base_model

__all__ = ["digest_base_model"]

# What decides the tokens and the weights; a README or an index beside them decides nothing.
_TEXTS: Final = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.gguf")
_WHOLE_BYTES: Final = 1 << 22
_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 1 << 16


def digest_base_model(name: str) -> str | None:
    """Return SHA-256 over a base model's files, None where it is not on this machine.

    Of a large file its size, beginning, end and samples in between are read: a second for any
    model, and training in place changes every one of them. Where the model lies changes nothing.

    Args:
        name: As in a recipe, resolved to the workspace; a Hub id is looked for in the Hub's cache.
    """
    try:
        place = Path(resolve_base_model(name))
    except ModelError:
        return None
    folder = place if place.exists() else _cached(name)
    if folder is None:
        return None
    try:
        return _digest(folder)
    except OSError:
        # A model that cannot be read is reported by whoever trains on it.
        return None


def _cached(name: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _digest(place: Path) -> str:
    total = hashlib.sha256()
    for path in _files(place):
        # The name of a lone file is its owner's choice, those in a folder are the format's.
        total.update(f"{path.name if place.is_dir() else ''}:{path.stat().st_size}:".encode())
        for block in _blocks(path):
            total.update(block)
    return total.hexdigest()


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    texts = [place / name for name in _TEXTS if (place / name).is_file()]
    return texts + sorted(path for pattern in _WEIGHTS for path in place.glob(pattern))


def _blocks(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            yield file.read()
            return
        for number in range(_SAMPLES):
            file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            yield file.read(_SAMPLE_BYTES)
