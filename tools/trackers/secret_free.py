"""Log records with the environment's secrets taken out."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

__all__ = ["SecretFreeFormatter"]

_NAME: Final = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
_SHORTEST: Final = 6


class SecretFreeFormatter(logging.Formatter):
    """Writes `***` for the value of every variable that holds a secret, and for passwords in addresses."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        values = [value for name, value in environment.items() if _NAME.search(name)]
        values += [word for value in environment.values() for word in _credentials(value)]
        # The longest first: one may be a part of another.
        self._secrets = sorted({value for value in values if len(value) >= _SHORTEST}, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _credentials(value: str) -> list[str]:
    if "://" not in value:
        return []
    try:
        parts = urlsplit(value)
    except ValueError:
        return []
    queries = [
        pair.partition("=")[2] for pair in parts.query.split("&") if _NAME.search(pair.partition("=")[0])
    ]
    return [word for word in (parts.password, *queries) if word]
