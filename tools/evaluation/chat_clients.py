"""Clients that ask a chat endpoint for a reply: any OpenAI-compatible server, and Anthropic.

The key of an endpoint is named, never held: a client keeps the name of the environment
variable, reads it when it asks, and neither logs nor shows its value.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

from tools.errors import EndpointBusyError, EvaluationError, JudgeError

__all__ = ["AnthropicClient", "ChatReply", "OpenAICompatibleClient"]

Messages = Sequence[Mapping[str, str]]

_TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT_S: Final = 60.0
_MAX_REPLY_BYTES: Final = 8_000_000


@dataclass(frozen=True)
class ChatReply:
    """A reply, and what the endpoint says that it cost; None where it does not say."""

    text: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    cut_off: bool = False
    """Whether the reply ended at its limit of tokens."""
    reasoning: str | None = None
    """The chain that came before the text, where the server tells it apart."""


@dataclass(frozen=True)
class OpenAICompatibleClient:
    """Any server with `/chat/completions`: vLLM, NIM, llama.cpp, Ollama, a hosted one.

    Args:
        base_url: Up to and with the version, e.g. http://localhost:8000/v1.
        api_key_env: Name of the environment variable that holds the key; None sends none.
        timeout_s: For one attempt, from its start to its last byte.
        max_attempts: Attempts in all, where the server is busy or the connection breaks.
        send_temperature: False for models that refuse a temperature.
        extra_body: More fields of the request, for what a server calls otherwise.
        sleep: Waits between attempts.
    Raises:
        EvaluationError: base_url is no plain http(s) address.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    timeout_s: float = 60.0
    max_attempts: int = 4
    send_temperature: bool = True
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EvaluationError(
                f"base_url is {self.base_url!r}; allowed: http://host/v1 or https://host/v1"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise EvaluationError("base_url holds a key or a query; name the key's variable in api_key_env")
        if self.max_attempts < 1 or not self.timeout_s > 0:
            raise EvaluationError(f"max_attempts is {self.max_attempts}, timeout_s {self.timeout_s}; above 0")

    def chat(
        self,
        messages: Messages,
        /,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        **options: Any,
    ) -> str:
        """Return the text of the reply.

        Raises:
            JudgeError: no reply after max_attempts, or one without a text.
        """
        return self.reply(messages, max_tokens=max_tokens, temperature=temperature, **options).text

    def reply(
        self,
        messages: Messages,
        /,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        **options: Any,
    ) -> ChatReply:
        """Return the reply with its cost.

        Raises:
            EndpointBusyError: the endpoint stayed busy or out of reach.
            JudgeError: it refused, or its reply holds no text.
        """
        body: dict[str, Any] = {"model": self.model, "messages": [dict(message) for message in messages]}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        if temperature is not None and self.send_temperature:
            body["temperature"] = temperature
        return _completion(self._post(json.dumps(body | options | dict(self.extra_body)).encode("utf-8")))

    def _post(self, body: bytes) -> bytes:
        url = self.base_url.rstrip("/") + "/chat/completions"
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = None if self.api_key_env is None else _key(self.api_key_env)
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        reason, wait_s = "", 0.0
        for attempt in range(1, self.max_attempts + 1):
            wait_s = min(0.5 * 2 ** (attempt - 1), _LONGEST_WAIT_S)
            try:
                return self._attempt(urllib.request.Request(url, body, headers, method="POST"))
            except urllib.error.HTTPError as err:
                with err:
                    reason = f"HTTP {err.code}: {_excerpt(err, key)}"
                    if err.code not in _TRANSIENT:
                        raise JudgeError(f"{url}: {reason}") from err
                    wait_s = _retry_after(err, wait_s)
            except (OSError, http.client.HTTPException) as err:
                reason = f"{type(err).__name__}: {err}"
            if attempt < self.max_attempts:
                self.sleep(wait_s)
        raise EndpointBusyError(
            f"{url}: no reply in {self.max_attempts} attempts; the last: {reason}", wait_s=wait_s
        )

    def _attempt(self, request: urllib.request.Request) -> bytes:
        deadline = time.monotonic() + self.timeout_s
        blocks: list[bytes] = []
        size = 0
        with _opener(request.host).open(request, timeout=self.timeout_s) as response:
            while block := response.read1(65536):
                blocks.append(block)
                size += len(block)
                if size > _MAX_REPLY_BYTES:
                    raise JudgeError(
                        f"{request.full_url}: a reply above {_MAX_REPLY_BYTES} bytes is not read"
                    )
                # The socket's own limit starts again with every byte.
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no whole reply in {self.timeout_s:g} s")
            # read1, unlike read, says nothing of a body that ends before its announced length.
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
        return b"".join(blocks)


@dataclass(frozen=True)
class AnthropicClient:
    """Claude, through the package `anthropic`, which is loaded at the first reply.

    Args:
        api_key_env: Name of the environment variable that holds the key.
        base_url: Another address than the package's own.
        send_temperature: True for older models, which take one; the newer refuse it.
    """

    model: str
    api_key_env: str = "ANTHROPIC_API_KEY"
    base_url: str | None = None
    timeout_s: float = 60.0
    max_attempts: int = 4
    send_temperature: bool = False

    def chat(
        self,
        messages: Messages,
        /,
        *,
        max_tokens: int = 1024,
        temperature: float | None = None,
        **options: Any,
    ) -> str:
        """Return the text of the reply; system turns become the system prompt.

        Raises:
            ImportError: the package `anthropic` is not installed.
            JudgeError: no reply, or one without a text.
        """
        return self.reply(messages, max_tokens=max_tokens, temperature=temperature, **options).text

    def reply(
        self,
        messages: Messages,
        /,
        *,
        max_tokens: int = 1024,
        temperature: float | None = None,
        **options: Any,
    ) -> ChatReply:
        """Return the reply with its cost, tokens read from or written to a cache included.

        Raises:
            ImportError: the package `anthropic` is not installed.
            EndpointBusyError: the endpoint stayed busy or out of reach.
            JudgeError: it refused, or its reply holds no text.
        """
        anthropic = _import_anthropic()
        system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        request: dict[str, Any] = {
            "model": self.model,
            "max_tokens": max_tokens,
            "messages": [dict(message) for message in messages if message["role"] != "system"],
            **({"system": system} if system else {}),
            **options,
        }
        if temperature is not None and self.send_temperature:
            # Version 2 of the package has no argument of that name any more.
            request["extra_body"] = {"temperature": temperature, **options.get("extra_body", {})}
        with anthropic.Anthropic(
            api_key=_key(self.api_key_env),
            base_url=self.base_url,
            timeout=self.timeout_s,
            max_retries=self.max_attempts - 1,
            # A redirect would take the key to another host.
            http_client=anthropic.DefaultHttpxClient(follow_redirects=False),
        ) as client:
            try:
                return _message(client.messages.create(**request))
            except anthropic.APIConnectionError as err:
                raise EndpointBusyError(f"{self.model}: {type(err).__name__}: {err}") from err
            except anthropic.APIStatusError as err:
                text = f"{self.model}: {type(err).__name__}: {err}"
                if err.status_code not in _TRANSIENT:
                    raise JudgeError(text) from err
                raise EndpointBusyError(text, wait_s=_retry_after(err.response, 0.0)) from err
            except (anthropic.AnthropicError, AttributeError, TypeError, ValueError) as err:
                # The package builds its answers without checking what the server sent.
                raise JudgeError(f"{self.model}: {type(err).__name__}: {err}") from err


def _import_anthropic() -> Any:
    try:
        return import_module("anthropic")
    except ImportError as err:
        raise ImportError(
            "AnthropicClient needs the package `anthropic`; install it: pip install 'bakehouse[anthropic]'"
        ) from err


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise JudgeError(f"the environment variable {variable} is not set; it must hold the endpoint's key")
    if not key.isascii() or not key.isprintable():
        raise JudgeError(f"the environment variable {variable} holds characters that no key has")
    return key


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener(host: str) -> urllib.request.OpenerDirector:
    name = urllib.parse.urlsplit(f"//{host}").hostname
    # A server on this machine is never behind a proxy.
    local = name in ("localhost", "127.0.0.1", "::1")
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})] if local else []
    return urllib.request.build_opener(_NoRedirects(), *handlers)


def _retry_after(response: Any, otherwise: float) -> float:
    try:
        asked = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return otherwise
    return min(asked, _LONGEST_WAIT_S) if asked >= 0 else otherwise


def _excerpt(error: urllib.error.HTTPError, key: str | None) -> str:
    try:
        text = error.read(2000).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException):
        return ""
    # Some servers repeat the header that they refuse.
    return (text.replace(key, "***") if key else text)[:300]


def _completion(data: bytes) -> ChatReply:
    try:
        body = json.loads(data)
        choice = body["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as err:
        raise JudgeError(f"the reply is no chat completion: {data[:200]!r}") from err
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if content is not None and not isinstance(content, str):
        raise JudgeError(f"the reply's content is {type(content).__name__}; a text is needed")
    chains = [choice["message"].get(name) for name in ("reasoning_content", "reasoning")]
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return ChatReply(
        text=content or "",
        input_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
        cut_off=choice.get("finish_reason") == "length",
        reasoning=next((chain for chain in chains if isinstance(chain, str) and chain), None),
    )


def _message(message: Any) -> ChatReply:
    usage = message.usage
    cached = (usage.cache_creation_input_tokens, usage.cache_read_input_tokens)
    read = _count(usage.input_tokens)
    return ChatReply(
        text="".join(block.text for block in message.content if block.type == "text"),
        input_tokens=None if read is None else read + sum(_count(tokens) or 0 for tokens in cached),
        output_tokens=_count(usage.output_tokens),
        cut_off=message.stop_reason == "max_tokens",
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
