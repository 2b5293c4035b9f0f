"""The two servers that mcp_latency asks: ours, and the SDK's own echo; over stdio and over HTTP."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import httpx2
import psutil
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

ECHO: Final = """
import sys
from mcp.server.mcpserver import MCPServer
server = MCPServer("echo", log_level="WARNING")
@server.tool()
def echo(text: str) -> str:
    return text
if len(sys.argv) > 1:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
else:
    server.run("stdio")
"""


@dataclass(frozen=True)
class Asked:
    """A running server: how it is asked the one thing that is measured, and its process."""

    client: Client
    process: psutil.Process
    tool: str
    arguments: dict[str, Any]

    async def ask(self) -> Any:
        """Call the tool once and return its result."""
        result = await self.client.call_tool(self.tool, self.arguments)
        assert not result.is_error, result
        return result

    def cpu_s(self) -> float:
        """Return the processor time that the server's process has used."""
        used = self.process.cpu_times()
        return float(used.user + used.system)

    def memory_mib(self) -> float:
        """Return the resident memory of the server's process and of its children."""
        family = [self.process, *self.process.children(recursive=True)]
        return float(sum(one.memory_info().rss for one in family) / 2**20)


def ours(root: Path, *more: str) -> list[str]:
    """Return the server's command, as clients start it."""
    return [sys.executable, "-P", "-m", "mcp_server", "--root", str(root), *more]


def echo() -> list[str]:
    """Return the command of the SDK's server with one tool."""
    return [sys.executable, "-P", "-c", ECHO]


@asynccontextmanager
async def over_stdio(command: list[str], tool: str, arguments: dict[str, Any]) -> AsyncIterator[Asked]:
    """Serve over stdio for the length of the block."""
    before = set(psutil.Process().children())
    server = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ))
    async with Client(server) as client:
        (process,) = set(psutil.Process().children()) - before
        await client.list_tools()
        yield Asked(client, process, tool, arguments)


@asynccontextmanager
async def over_http(
    command: Callable[[int], list[str]], tool: str, arguments: dict[str, Any]
) -> AsyncIterator[Asked]:
    """Serve over HTTP, on a free port, for the length of the block."""
    token, port = secrets.token_urlsafe(32), _free_port()
    environment = {**os.environ, "BAKEHOUSE_MCP_TOKEN": token}
    process = subprocess.Popen(command(port), env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while _refuses(port):
            assert process.poll() is None, "the server ended at once"
            assert time.monotonic() < deadline, "the server does not listen"
            await anyio.sleep(0.05)
        headers = {"authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
            transport = streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=http)
            async with Client(transport) as client:
                await client.list_tools()
                yield Asked(client, psutil.Process(process.pid), tool, arguments)
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def _refuses(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0
