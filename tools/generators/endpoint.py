"""Answers from a server that speaks OpenAI's chat completions: vLLM, NIM, llama.cpp, a hosted one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from tools.errors import EndpointBusyError, EvaluationError, JudgeError
from tools.evaluation.chat_clients import ChatReply, OpenAICompatibleClient
from tools.generators.generator import Conversation, Generation
from tools.probe.asking import Response
from tools.probe.generator import Sampling
from tools.probe.think import CHAR_QUARTER, count_char_quarters
from tools.rows import Message

__all__ = ["EndpointGenerator"]

logger = logging.getLogger(__name__)

_GIVE_UP_AFTER: Final = 16
"""Conversations in a row that an endpoint leaves without an answer before the rest is not asked."""


@dataclass(frozen=True)
class EndpointGenerator:
    """A model behind an endpoint, asked for several conversations at once.

    It also answers a probe's questions, as a `BatchGenerator`.

    Args:
        client: Where and whom to ask; it retries a busy server, as long as the server says.
        sampling: `max_new_tokens`, `temperature`, `top_p` and `seed`, sent with each request.
        concurrency: Requests in flight at most.
    Raises:
        EvaluationError: concurrency is out of range.
    """

    client: OpenAICompatibleClient
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    concurrency: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= 256:
            raise EvaluationError(f"concurrency is {self.concurrency}; from 1 to 256 is allowed")

    @property
    def name(self) -> str:
        return f"{self.client.model} at {self.client.base_url}"

    @property
    def batch_size(self) -> int:
        return self.concurrency

    @property
    def counted_by(self) -> str:
        return CHAR_QUARTER

    def count_tokens(self, text: str) -> int:
        """Return a token count by length: the server keeps its tokenizer to itself."""
        return count_char_quarters(text)

    def generate(self, conversations: Sequence[Conversation]) -> tuple[Generation, ...]:
        """Answer every conversation, in their order; one without an answer says why."""
        silence = _Silence()

        def ask(conversation: Conversation) -> Generation:
            if (reason := silence.reason) is not None:
                return Generation(None, f"not asked, the endpoint is silent: {reason}")
            return self._ask(conversation, silence)

        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="endpoint") as pool:
            return tuple(pool.map(ask, conversations))

    def answer(self, prompts: Sequence[str]) -> tuple[Response, ...]:
        """Answer each prompt as the only user turn, as a probe asks; its chain in think tags.

        Raises:
            JudgeError: a prompt got no answer.
        """
        found = self.generate([(Message("user", prompt),) for prompt in prompts])
        for generation in found:
            if generation.text is None:
                raise JudgeError(generation.error or "no answer")
        return tuple(Response(_with_chain(one), one.is_complete) for one in found)

    def _ask(self, conversation: Conversation, silence: _Silence) -> Generation:
        try:
            reply = self._reply(conversation)
        except EndpointBusyError as err:
            silence.heard_nothing(str(err))
            return Generation(None, str(err))
        except JudgeError as err:
            # An endpoint that refuses is there: its next answer may be another.
            silence.heard()
            return Generation(None, str(err))
        silence.heard()
        return Generation(
            reply.text,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            is_complete=not reply.cut_off,
            reasoning=reply.reasoning,
        )

    def _reply(self, conversation: Conversation) -> ChatReply:
        options: dict[str, Any] = {"seed": self.sampling.seed}
        if self.sampling.temperature > 0:
            options["top_p"] = self.sampling.top_p
        return self.client.reply(
            [{"role": turn.role, "content": turn.content} for turn in conversation],
            max_tokens=self.sampling.max_new_tokens,
            temperature=self.sampling.temperature,
            **options,
        )


def _with_chain(generation: Generation) -> str:
    text = generation.text or ""
    if generation.reasoning is None:
        return text
    # A chain that was cut off has no text behind it, and never ended.
    end = "\n</think>\n" if text or generation.is_complete else ""
    return f"<think>\n{generation.reasoning}{end}{text}"


class _Silence:
    """Counts how many conversations in a row an endpoint left unanswered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n = 0
        self.reason: str | None = None

    def heard(self) -> None:
        with self._lock:
            self._n = 0

    def heard_nothing(self, reason: str) -> None:
        with self._lock:
            self._n += 1
            if self._n == _GIVE_UP_AFTER:
                logger.warning("no answer to %d conversations in a row: %s", self._n, reason)
                self.reason = reason
