"""Teachers behind an endpoint: Claude, and any server that speaks OpenAI's chat completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from agent.teachers.teacher import ChatReply
from tools.errors import JudgeError
from tools.evaluation.chat_clients import AnthropicClient, OpenAICompatibleClient

__all__ = ["ClaudeTeacher", "OpenAITeacher"]

_NEW_LIMIT: Final = "max_completion_tokens"


@dataclass(frozen=True)
class OpenAITeacher:
    """A model behind `/chat/completions`, here or hosted."""

    client: OpenAICompatibleClient

    @property
    def name(self) -> str:
        return self.client.model

    def ask(self, system: str, question: str, *, max_tokens: int) -> ChatReply:
        """Return the reply of one attempt."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        try:
            return self.client.reply(messages, max_tokens=max_tokens)
        except JudgeError as err:
            # Newer hosted models refuse the old name of the limit, before they spend anything.
            if _NEW_LIMIT not in str(err):
                raise
        limit: dict[str, Any] = {_NEW_LIMIT: max_tokens}
        return self.client.reply(messages, **limit)


@dataclass(frozen=True)
class ClaudeTeacher:
    """Claude, or any server that speaks the Messages API."""

    client: AnthropicClient

    @property
    def name(self) -> str:
        return self.client.model

    def ask(self, system: str, question: str, *, max_tokens: int) -> ChatReply:
        """Return the reply of one attempt; what is said before the question is cached."""
        head = [{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}]
        messages = [{"role": "user", "content": question}]
        return self.client.reply(messages, max_tokens=max_tokens, system=head)
