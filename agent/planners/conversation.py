"""The conversation: one plan asked of a model over the Messages API, turn by turn."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agent.planners.metering import RequestDebits
from agent.planners.planner_tools import SUBMIT, Desk
from agent.planners.prompt import PlannerPrompt
from agent.planners.quoting import cut
from agent.planners.usage import PlannerUsage
from tools.errors import BudgetError, PlannerOutageError

if TYPE_CHECKING:
    import anthropic
    from anthropic.lib.streaming import BetaMessageStream
    from anthropic.lib.tools import BetaFunctionTool
    from anthropic.types.beta import BetaMessage

__all__ = ["Conversation"]

# What the SDK raises where a server's reply is not what the Messages API promises.
_BROKEN_REPLY: Final = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
)
_CACHED: Final = {"type": "ephemeral"}


@dataclass
class Conversation:
    """Asks until a plan is on the desk, the turns are used up or the time is over."""

    client: anthropic.Anthropic
    model: str
    desk: Desk
    tools: list[BetaFunctionTool[Any]]
    turns: int
    max_tokens: int
    deadline: float
    clock: Callable[[], float] = time.monotonic
    debits: RequestDebits | None = None
    """Debits the requests, where there is a budget."""
    usage: PlannerUsage = field(default_factory=PlannerUsage)
    nudges: list[str] = field(default_factory=list)
    """Why a turn ended without a plan."""
    said: str = ""
    """The text of the last reply."""

    def run(self, prompt: PlannerPrompt) -> None:
        """Hold the conversation; what came of it is on the desk.

        Raises:
            PlannerOutageError: the server cannot be asked, breaks off, or declines.
            BudgetError: the next request does not fit into what is left.
        """
        self.usage = PlannerUsage(model=self.model)
        if self.turns > 1:
            self._rounds([_user(prompt.state)], prompt.head, self.turns - 1, is_last=False)
        else:
            self._rounds([_user(prompt.state)], prompt.head, 1, is_last=True)
        if self.desk.is_open and self.turns > 1:
            why = self.nudges[-1] if self.nudges else "the replies were used up"
            ask = f"You have not handed in a usable plan ({why}). Call {SUBMIT} now; nothing else is read."
            ask = "\n".join([ask, *(f"- refused before: {refusal}" for refusal in self.desk.refusals[:20])])
            messages = [_user(prompt.state), _assistant(self.said or "I looked things up."), _user(ask)]
            left = self.turns - self.usage.turns
            self._rounds(messages, prompt.head, max(1, min(2, left)), is_last=True)

    def _rounds(self, messages: list[Any], head: str, turns: int, *, is_last: bool) -> None:
        import httpx2
        from anthropic import AnthropicError

        try:
            with warnings.catch_warnings():
                # The SDK warns of a call of a tool that does not exist; here it is a refusal.
                warnings.simplefilter("ignore", UserWarning)
                self._run_tools(messages, head, turns, is_last=is_last)
        except (PlannerOutageError, BudgetError):
            raise
        except (AnthropicError, httpx2.HTTPError, httpx2.StreamError, *_BROKEN_REPLY) as err:
            self._check_time()
            raise PlannerOutageError(f"{self.model}: {_safe(err)}") from err

    def _run_tools(self, messages: list[Any], head: str, turns: int, *, is_last: bool) -> None:
        choice: Any = {"type": "tool", "name": SUBMIT} if is_last else {"type": "auto"}
        system: Any = [{"type": "text", "text": head, "cache_control": _CACHED}]
        runner = self.client.beta.messages.tool_runner(
            model=self.model,
            max_tokens=self.max_tokens,
            system=system,
            messages=messages,
            tools=self.tools,
            tool_choice=choice,
            stream=True,
            # Servers other than Anthropic's hold no thread, and would see the second turn alone.
            thread=False,
            max_iterations=turns,
        )
        for stream in runner:
            message = self._read(stream)
            self._meter(message)
            self._look_at(message)
            # Runs the tools of this reply, so that no further turn is paid for once the plan is in.
            if message.stop_reason == "tool_use":
                runner.generate_tool_call_response()
            if not self.desk.is_open:
                runner.close()
                return

    def _read(self, stream: BetaMessageStream[Any]) -> BetaMessage:
        """Read a reply to its end, or to the end of the time."""
        # The SDK keeps pings to itself, so a server that only pings would never be seen here.
        watch = threading.Timer(max(0.0, self.deadline - self.clock()), stream.close)
        watch.daemon = True
        watch.start()
        try:
            for _ in stream:
                self._check_time()
        finally:
            watch.cancel()
        self._check_time()
        message: BetaMessage = stream.get_final_message()
        return message

    def _look_at(self, message: BetaMessage) -> None:
        known = {tool.name for tool in self.tools}
        for block in message.content:
            if block.type == "tool_use" and block.name not in known:
                self.desk.refusals.append(f"there is no tool {cut(block.name, 80)!r}")
        if message.stop_reason == "refusal":
            raise PlannerOutageError(f"{self.model} declined to answer")
        texts = [block.text for block in message.content if block.type == "text"]
        self.said = cut("\n".join(texts).strip(), 4000)
        if message.stop_reason != "tool_use":
            self.nudges.append(f"the reply ended with {message.stop_reason}")

    def _meter(self, message: BetaMessage) -> None:
        used = message.usage
        counts = {
            "input_tokens": _count(used, "input_tokens"),
            "output_tokens": _count(used, "output_tokens"),
            "cache_read_tokens": _count(used, "cache_read_input_tokens"),
            "cache_write_tokens": _count(used, "cache_creation_input_tokens"),
        }
        self.usage = self.usage.add(**counts)
        if self.debits is not None:
            self.debits.on_reply(PlannerUsage(model=self.model).add(**counts))

    def _check_time(self) -> None:
        if self.clock() > self.deadline:
            raise PlannerOutageError(f"{self.model} gave no plan in the time it had")


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text, "cache_control": _CACHED}]}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _count(usage: Any, name: str) -> int:
    value = getattr(usage, name, None)
    return value if isinstance(value, int) and value > 0 else 0


def _safe(err: BaseException) -> str:
    text = f"{type(err).__name__}: {err}"
    # Some servers repeat the header that they refuse.
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        key = os.environ.get(name, "").strip()
        text = text.replace(key, "***") if key else text
    return cut(" ".join(text.split()), 400)
