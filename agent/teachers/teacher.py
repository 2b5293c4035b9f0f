"""The teacher: a language model that is asked for rows, and that may lie, stall or fail."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from tools.evaluation.chat_clients import ChatReply

__all__ = ["ChatReply", "Teacher"]


@runtime_checkable
class Teacher(Protocol):
    """Anything that answers one question. It asks once: whoever calls it meters and retries."""

    @property
    def name(self) -> str:
        """What the rows' provenance calls it."""
        ...

    def ask(self, system: str, question: str, *, max_tokens: int) -> ChatReply:
        """Return the reply.

        Args:
            system: The same for every question of a job, so that an endpoint may cache it.
        Raises:
            EndpointBusyError: asked again later, it may answer.
            JudgeError: it refused, or its reply holds no text.
        """
        ...
