"""Refusals: answers that decline to answer."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["REFUSAL_PATTERNS", "is_refusal"]

# Both apostrophes: models write the curly one as often.
_NOT: Final = r"(?:not|n['’]t)"

REFUSAL_PATTERNS: Final[tuple[re.Pattern[str], ...]] = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\bI\s+do\s*{_NOT}\s+(?:know|have)\b",
        rf"\bI\s*(?:can\s*{_NOT}|can['’]t|\s+am\s+not\s+able\s+to|['’]m\s+not\s+able\s+to)"
        r"\s+(?:answer|provide|determine|find|verify|help|assist|say)\b",
        r"\bI\s*(?:\s+am|['’]m)\s+unable\s+to\b",
        rf"\bcontext\s+(?:does|do)\s*{_NOT}\s+(?:contain|include|mention|specify|state|provide|say)\b",
        r"\bnot\s+(?:explicitly\s+|directly\s+)?(?:specified|mentioned|provided|available|stated|given)\b",
        r"\bnot\s+(?:explicitly|directly)\b",
        r"\bno\s+(?:specific\s+|direct\s+|such\s+)?information\b",
        r"\bunclear\b",
        r"\binsufficient\s+(?:information|context|data)\b",
        r"\bcan\s*not\s+be\s+determined\b",
    )
)
"""What a refusal says. Wide on purpose: a hedge that counts as an answer does more harm than
an answer that counts as a refusal."""


def is_refusal(text: str | None) -> bool:
    """Say whether text declines to answer. No text at all, or blank text, is a refusal."""
    if text is None or not text.strip():
        return True
    return any(pattern.search(text) for pattern in REFUSAL_PATTERNS)
