"""HTTP: no token, no service; Host, Origin, rate and size are checked; a job is its principal's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextContent

from mcp_server.commands import main
from mcp_server.http_server import MAX_BODY_BYTES, Address, RateLimit, build_app
from mcp_server.settings import Settings
from mcp_server.tokens import Tokens, load_tokens
from tests.mcp_server.conftest import TOKENS, http
from tests.mcp_server.test_long_work import facts, sleeper
from tools.errors import McpError
from tools.workspace import Workspace

pytestmark = pytest.mark.anyio
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
HEADERS = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


@pytest.mark.parametrize("era", ["legacy", "auto"])
async def test_a_job_is_seen_by_its_principal_alone(url: str, workspace: Workspace, era: str) -> None:
    async with http("ada") as first, Client(streamable_http_client(url, http_client=first), mode=era) as ada:
        job_id = (await facts(ada, "train", idempotency_key="same"))["job_id"]
        assert (await facts(ada, "poll", wait_s=0))["job_id"] == job_id
        other = http("bob")
        async with other, Client(streamable_http_client(url, http_client=other), mode=era) as bob:
            for tool, arguments in (
                ("poll", {"job_id": job_id}),
                ("cancel", {"job_id": job_id}),
                ("poll", {}),
                ("evaluate", {"adapter": job_id}),
                ("compare", {"base": job_id, "candidate": "base"}),
            ):
                result = await bob.call_tool(tool, arguments)
                block = result.content[0]
                assert isinstance(block, TextContent)
                assert result.is_error
                assert "no job" in block.text
            own = (await facts(bob, "evaluate", idempotency_key="same"))["job_id"]
            assert own != job_id
            await facts(bob, "cancel", job_id=own)
        await facts(ada, "cancel", job_id=job_id)
    cli_job = sleeper(workspace, seconds=0)
    async with http("ada") as first, Client(streamable_http_client(url, http_client=first)) as ada:
        assert (await ada.call_tool("poll", {"job_id": cli_job})).is_error


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer " + "x" * 40}, 401),
        ({"authorization": "Basic " + TOKENS["ada"]}, 401),
        ({"authorization": f"Bearer {TOKENS['ada']}", "host": "evil.example"}, 421),
        ({"authorization": f"Bearer {TOKENS['ada']}", "origin": "https://evil.example"}, 403),
    ],
)
async def test_a_stranger_is_turned_away(url: str, headers: dict[str, str], status: int) -> None:
    async with httpx2.AsyncClient() as client:
        answer = await client.post(url, json=LIST, headers=HEADERS | headers)
    assert answer.status_code == status
    assert "tools" not in answer.text


async def test_a_huge_body_is_refused(url: str) -> None:
    async with http("ada") as client:
        answer = await client.post(url, content=b"x" * (MAX_BODY_BYTES + 1), headers=HEADERS)
        assert answer.status_code == 413
        assert (await client.post(url, content=b"{", headers=HEADERS)).status_code == 400


async def test_a_flood_is_told_when_to_come_again() -> None:
    now = 100.0
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    limit = RateLimit(app, Tokens(TOKENS), rate_per_s=2, burst=3, clock=lambda: now)

    async def ask(name: str | None, address: str = "1.2.3.4") -> int:
        sent.clear()
        headers = [] if name is None else [(b"authorization", f"Bearer {TOKENS[name]}".encode())]
        await limit({"type": "http", "headers": headers, "client": (address, 1)}, receive, send)
        return int(sent[0]["status"])

    assert [await ask("ada") for _ in range(4)] == [200, 200, 200, 429]
    assert dict(sent[0]["headers"])[b"retry-after"] == b"1"
    assert await ask("bob") == 200
    assert [await ask(None) for _ in range(4)] == [200, 200, 200, 429]
    assert await ask(None, "5.6.7.8") == 200
    now += 0.6
    assert [await ask("ada"), await ask("ada")] == [200, 429]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--http", "127.0.0.1:0"], "needs a bearer token"),
        (["--http", "0.0.0.0:0"], "needs a bearer token"),
        (["--http", "8000"], "HOST:PORT"),
        (["--token-file", "x"], "belong to --http"),
        (["--lanes", "shell"], "--lanes"),
        (["--exclude-tools", "shell"], "--exclude-tools"),
    ],
)
def test_a_server_that_would_be_unsafe_does_not_start(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("BAKEHOUSE_MCP_TOKEN", raising=False)
    assert main(["--root", str(tmp_path), *arguments]) == 1
    assert said in capsys.readouterr().err


def test_every_address_needs_the_names_that_clients_use(tmp_path: Path) -> None:
    settings = Settings(roots=(tmp_path,))
    with pytest.raises(McpError, match="--allowed-host"):
        build_app(settings, Address("0.0.0.0", 1), Tokens(TOKENS))
    assert build_app(settings, Address("0.0.0.0", 1), Tokens(TOKENS), allowed_hosts=["spark.local"])


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ({}, "needs a bearer token"),
        ({"a": "short"}, "too short"),
        ({"local": "x" * 40}, "no principal"),
        ({"A b": "x" * 40}, "no principal"),
        ({"a": "x" * 40, "b": "x" * 40}, "share a token"),
    ],
)
def test_tokens_that_protect_nothing_are_refused(tokens: dict[str, str], said: str) -> None:
    with pytest.raises(McpError, match=said) as caught:
        Tokens(tokens)
    assert "x" * 40 not in str(caught.value)


def test_tokens_come_from_the_environment_and_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# who token\nada {TOKENS['ada']}\n\n", encoding="utf-8")
    file.chmod(0o644)
    environ = {"BAKEHOUSE_MCP_TOKEN": TOKENS["bob"], "PATH": "/bin"}
    with pytest.raises(McpError, match="chmod 600"):
        load_tokens(file, dict(environ))
    file.chmod(0o600)
    tokens = load_tokens(file, environ)
    assert environ == {"PATH": "/bin"}
    assert [tokens.find(TOKENS["ada"]), tokens.find(TOKENS["bob"]), tokens.find("")] == [
        "ada",
        "default",
        None,
    ]
    assert all(token not in repr(vars(tokens)) for token in TOKENS.values())
    file.write_text("ada\n", encoding="utf-8")
    with pytest.raises(McpError, match="tokens:1"):
        load_tokens(file, {})


@pytest.mark.parametrize(
    ("text", "host", "loopback"),
    [
        ("127.0.0.1:80", "127.0.0.1", True),
        ("[::1]:80", "::1", True),
        ("localhost:80", "localhost", True),
        ("10.0.0.1:80", "10.0.0.1", False),
    ],
)
def test_an_address_is_read(text: str, host: str, loopback: bool) -> None:
    address = Address.parse(text)
    assert (address.host, address.port, address.is_loopback) == (host, 80, loopback)
