"""Clients written by others, over both transports; run with the interpreter of their own environment.

PYTHON tests/clients/python_clients.py fastmcp|pydantic-ai|openai-agents stdio|http COMMAND_OR_URL...
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

N_TOOLS = 13
DECIDE = {"question": "train_backend", "optimize_for": "wall_clock"}


async def fastmcp(transport: str, target: list[str]) -> None:
    from fastmcp import Client
    from fastmcp.client.transports import StdioTransport, StreamableHttpTransport

    if transport == "stdio":
        way: Any = StdioTransport(command=target[0], args=target[1:])
    else:
        way = StreamableHttpTransport(target[0], headers=authorization())
    async with Client(way) as client:
        assert len(await client.list_tools()) == N_TOOLS
        answer = await client.call_tool("decide", DECIDE)
        assert answer.structured_content["pick"] == answer.data.pick
        assert "base_model" in (await client.read_resource("recipe://drone-router/current"))[0].text
        assert len(await client.list_prompts()) == 4


async def pydantic_ai(transport: str, target: list[str]) -> None:
    from fastmcp.client.transports import StdioTransport
    from pydantic_ai import Agent
    from pydantic_ai.mcp import MCPToolset
    from pydantic_ai.models.test import TestModel

    if transport == "stdio":
        tools = MCPToolset(StdioTransport(command=target[0], args=target[1:]))
    else:
        tools = MCPToolset(target[0], headers=authorization())
    agent = Agent(TestModel(call_tools=["refresh", "validate_recipe"]), toolsets=[tools])
    async with agent:
        result = await agent.run("say what is stale")
    assert "fresh" in result.output
    assert '"ok":true' in result.output.replace(" ", "")


async def openai_agents(transport: str, target: list[str]) -> None:
    from agents.mcp import MCPServerStdio, MCPServerStreamableHttp

    if transport == "stdio":
        server: Any = MCPServerStdio(params={"command": target[0], "args": target[1:]})
    else:
        server = MCPServerStreamableHttp(params={"url": target[0], "headers": authorization()})
    async with server:
        assert len(await server.list_tools()) == N_TOOLS
        answer = await server.call_tool("decide", DECIDE)
        assert "nemo" in answer.content[0].text


def authorization() -> dict[str, str]:
    return {"Authorization": f"Bearer {os.environ['BAKEHOUSE_TEST_TOKEN']}"}


def main() -> None:
    which = {"fastmcp": fastmcp, "pydantic-ai": pydantic_ai, "openai-agents": openai_agents}[sys.argv[1]]
    asyncio.run(which(sys.argv[2], sys.argv[3:]))


if __name__ == "__main__":
    main()
