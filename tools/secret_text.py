"""Secrets in a command line, found before it is written down."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from tools.secret_scan import find_secrets

__all__ = ["find_secret", "is_secret_name"]

_NAME: Final = re.compile(
    r"-{0,2}(?:[a-z0-9]+[-_])*"
    r"(?:api[-_]?key|(?:access|auth|bearer|hf|hub|github)[-_]token|secret|password|passwd|private[-_]key)",
    re.IGNORECASE,
)
_TOKEN_FLAG: Final = re.compile(r"--?token", re.IGNORECASE)


def find_secret(argv: Sequence[str]) -> str | None:
    """Return which element of argv looks like a secret, without its text, or None.

    A secret is a value in a well-known form (a key's prefix, a password in a URL), or what
    is given to a name such as `--api-key`, `HF_TOKEN=` or `password=`.
    """
    for number, part in enumerate(argv):
        name, equals, value = part.partition("=")
        if find_secrets(part):
            return f"argv[{number}]"
        if equals and value and is_secret_name(name):
            return f"argv[{number}], the value of {name[:40]!r},"
        if not equals and part.startswith("-") and is_secret_name(part) and _has_value(argv, number):
            return f"argv[{number + 1}], the value of {part[:40]!r},"
    return None


def is_secret_name(text: str) -> bool:
    """Return whether a flag or variable of this name is given a secret: HF_TOKEN, --api-key."""
    return bool(_NAME.fullmatch(text) or _TOKEN_FLAG.fullmatch(text))


def _has_value(argv: Sequence[str], number: int) -> bool:
    return number + 1 < len(argv) and not argv[number + 1].startswith("--")
