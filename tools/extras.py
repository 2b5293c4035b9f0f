"""The optional packages: a clear word where a command needs one that is not installed."""

from __future__ import annotations

import importlib.util
from typing import Final

from tools.errors import MissingExtraError

__all__ = ["EXTRAS", "require_extra"]

EXTRAS: Final = {
    "train": ("torch", "transformers", "peft", "safetensors", "gguf"),
    "quant": ("bitsandbytes", "accelerate"),
    "anthropic": ("anthropic",),
    "ray": ("ray",),
}
"""What must be importable for an extra to count as installed."""


def require_extra(extra: str, *, purpose: str) -> None:
    """Do nothing where an extra is installed. Loads none of its packages.

    Args:
        extra: A key of EXTRAS.
        purpose: What needs it, as the subject of a sentence.
    Raises:
        MissingExtraError: names the packages that are missing and the command that installs them.
    """
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{purpose} needs {', '.join(missing)}, not installed here; "
            f"install the extra `{extra}`: pip install 'bakehouse[{extra}]'"
        )
