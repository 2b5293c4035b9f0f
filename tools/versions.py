"""Versions of the libraries that a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Final

_LIBRARIES: Final = ("torch", "transformers", "peft", "safetensors", "tokenizers", "bakehouse")

__all__ = ["library_versions"]


def library_versions() -> dict[str, str]:
    """Return name -> version of Python and of each library installed; missing ones are left out."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
