"""The HTTP transport: a token for everybody, Host and Origin checked, a rate for each principal."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from mcp_server.app import build_server
from mcp_server.settings import Settings
from mcp_server.tokens import Tokens
from tools.errors import McpError

MAX_BODY_BYTES: Final = 256 * 1024
RATE_PER_S: Final = 50.0
BURST: Final = 400.0
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_MAX_PRINCIPALS: Final = 10_000


@dataclass(frozen=True)
class Address:
    """Where an HTTP server listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read HOST:PORT, with an IPv6 host in brackets.

        Raises:
            McpError: it is none.
        """
        host, colon, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not colon or not bare or not port.isdecimal() or not 0 <= int(port) <= 65535:
            raise McpError(f"--http is {text!r}; HOST:PORT is allowed, such as 127.0.0.1:8642")
        return cls(bare, int(port))

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class _Verifier:
    """Tells the SDK whose token it is."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def verify_token(self, token: str) -> AccessToken | None:
        name = self._tokens.find(token)
        return None if name is None else AccessToken(token="", client_id=name, scopes=[])


class RateLimit:
    """Refuses requests beyond a rate, by principal where one is known, else by address."""

    def __init__(
        self,
        app: ASGIApp,
        tokens: Tokens,
        *,
        rate_per_s: float = RATE_PER_S,
        burst: float = BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._tokens = app, tokens
        self._rate_per_s, self._burst, self._clock = rate_per_s, burst, clock
        self._left: dict[str, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or answer 429 with the seconds after which to try again."""
        if scope["type"] == "http" and (wait_s := self._take(self._who(scope))) > 0:
            refusal = JSONResponse(
                {"error": "rate_limited", "error_description": f"too many requests; wait {wait_s:.1f} s"},
                status_code=429,
                headers={"retry-after": str(max(1, round(wait_s)))},
            )
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _take(self, who: str) -> float:
        """Take one request out of who's allowance; return the seconds to wait where none is left."""
        now = self._clock()
        left, since = self._left.get(who, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate_per_s)
        if left < 1:
            return (1 - left) / self._rate_per_s
        if len(self._left) >= _MAX_PRINCIPALS:
            self._left.clear()
        self._left[who] = (left - 1, now)
        return 0.0

    def _who(self, scope: Scope) -> str:
        for name, value in scope["headers"]:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                known = self._tokens.find(value[7:].decode("latin-1"))
                if known is not None:
                    return f"principal {known}"
        client = scope.get("client")
        return f"address {client[0] if client else 'unknown'}"


def build_app(
    settings: Settings, address: Address, tokens: Tokens, *, allowed_hosts: Sequence[str] = ()
) -> ASGIApp:
    """Return the ASGI application.

    Args:
        settings: What the operator decided.
        address: Where it will be bound.
        tokens: Who may come in.
        allowed_hosts: Values of the Host header besides the loopback names and the address itself.
    Raises:
        McpError: it would listen on every address without saying under which names.
    """
    if address.host in ("0.0.0.0", "::") and not allowed_hosts:
        raise McpError(
            f"{address.host} is every address of this machine; say under which names clients come with "
            "--allowed-host NAME, or bind one address"
        )
    own = [] if address.host in ("0.0.0.0", "::") else [_bracketed(address.host)]
    hosts = list(dict.fromkeys([*_LOOPBACK, *own, *allowed_hosts]))
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[name for host in hosts for name in (host, f"{host}:*")],
        allowed_origins=[f"http://{host}:*" for host in hosts] + [f"https://{host}" for host in hosts],
    )
    url: Any = f"http://{_bracketed(address.host)}:{address.port}"
    server = build_server(
        settings,
        token_verifier=_Verifier(tokens),
        auth=AuthSettings(issuer_url=url, resource_server_url=None),
    )
    app: Starlette = server.streamable_http_app(
        transport_security=security, max_request_body_size=MAX_BODY_BYTES, host=address.host
    )
    return RateLimit(app, tokens)


def serve(app: ASGIApp, address: Address) -> None:
    """Serve until the process is told to end."""
    import uvicorn

    # Headers, and with them tokens, are in no access log.
    uvicorn.run(app, host=address.host, port=address.port, log_level="warning", access_log=False)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
