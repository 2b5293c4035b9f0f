"""What a generator is: something that answers conversations, each one for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tools.rows import Message

__all__ = ["Conversation", "Generation", "Generator"]

Conversation = Sequence[Message]
"""Turns of which the last is the user's."""


@dataclass(frozen=True)
class Generation:
    """The answer to one conversation, or why there is none."""

    text: str | None
    error: str | None = None
    """Set where text is None, and only there."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    """None where nobody counted."""
    is_complete: bool | None = None
    """False when the limit of tokens cut it off, None when nobody can tell."""
    reasoning: str | None = None
    """The chain before the text, where the server tells it apart."""


@runtime_checkable
class Generator(Protocol):
    """Answers conversations."""

    @property
    def name(self) -> str:
        """What reports call it; no secret is in it."""
        ...

    def generate(self, conversations: Sequence[Conversation]) -> tuple[Generation, ...]:
        """Answer every conversation, in their order. One that fails costs none of the others."""
        ...
