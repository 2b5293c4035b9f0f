"""The client of a planner: which server is asked, with which key, and for how long."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from tools.errors import PlannerError
from tools.extras import require_extra

if TYPE_CHECKING:
    import anthropic

    from agent.planners.metering import RequestDebits

__all__ = ["MessagesServer", "check_server", "open_client"]

_NO_KEY: Final = "no-key-needed"
_LONGEST_WAIT_S: Final = 60.0
_KEYS: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")


@dataclass(frozen=True)
class MessagesServer:
    """Where a planner's model is asked. Keys come from the environment alone.

    An address in a file is not trusted with a key: whoever wrote the file would be. The key goes
    to the address that the environment names (ANTHROPIC_BASE_URL), or to Anthropic's own.
    """

    base_url: str | None = None
    timeout_s: float = 120.0
    """Longest silence of the server."""
    max_retries: int = 4
    """Of the SDK, on 408, 409, 429, 5xx and lost connections."""

    @property
    def sends_key(self) -> bool:
        """Whether the environment's key is sent."""
        named = os.environ.get("ANTHROPIC_BASE_URL", "").rstrip("/")
        return self.base_url is None or self.base_url.rstrip("/") == named


def check_server(server: MessagesServer) -> None:
    """Refuse a server that could not be asked, before anything is spent.

    Raises:
        MissingExtraError: the SDK is not installed.
        PlannerError: a key is needed and the environment holds none.
    """
    require_extra("anthropic", purpose="the planner 'claude'")
    if server.sends_key and not any(os.environ.get(name, "").strip() for name in _KEYS):
        raise PlannerError(
            f"the planner 'claude' needs a key: set {_KEYS[0]}, or name a server that needs none in "
            "planner_base_url; the planner 'optuna' needs neither"
        )


def open_client(server: MessagesServer, debits: RequestDebits | None = None) -> anthropic.Anthropic:
    """Return a client of the server; close it after use.

    Args:
        debits: Told of every request before it leaves, and of those that the server refused.
    """
    import anthropic

    def look(response: Any) -> None:
        _refuse_long_waits(response)
        if debits is not None:
            debits.on_status(response.status_code)

    class Client(anthropic.Anthropic):
        # The SDK calls this for every attempt, its own repeats included, and lets its errors out.
        def _prepare_request(self, request: Any) -> None:
            super()._prepare_request(request)
            if debits is not None:
                debits.on_request(request.content)

    http_client = anthropic.DefaultHttpxClient(
        # A redirect would take the prompt and the key to another host.
        follow_redirects=False,
        event_hooks={"response": [look]},
        # A server on this machine is never behind a proxy.
        trust_env=not _is_local(server.base_url),
    )
    return Client(
        api_key=None if server.sends_key else _NO_KEY,
        base_url=server.base_url,
        timeout=server.timeout_s,
        max_retries=server.max_retries,
        default_headers={} if server.sends_key else _without_custom_headers(anthropic.Omit()),
        http_client=http_client,
    )


def _without_custom_headers(omit: Any) -> dict[str, Any]:
    """Return overrides for the headers that the SDK takes from the environment: gateways keep keys there."""
    lines = os.environ.get("ANTHROPIC_CUSTOM_HEADERS", "").split("\n")
    return {line.partition(":")[0].strip(): omit for line in lines if ":" in line}


def _refuse_long_waits(response: Any) -> None:
    """Keep a retry-after of hours from holding the loop: the SDK would sleep through it."""
    try:
        wait_s = float(response.headers.get("retry-after", "0"))
    except ValueError:
        # A date; the SDK would wait until then, so no retry is safer than one next year.
        wait_s = float("inf")
    if not wait_s <= _LONGEST_WAIT_S:
        response.headers["x-should-retry"] = "false"


def _is_local(base_url: str | None) -> bool:
    host = urlsplit(base_url or "").hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
