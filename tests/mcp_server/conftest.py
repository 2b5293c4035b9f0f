"""A workspace with a tiny real model, and servers over it."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from mcp import StdioServerParameters
from mcp.server.mcpserver import MCPServer

from mcp_server.app import build_server
from mcp_server.http_server import Address, build_app
from mcp_server.settings import Settings
from mcp_server.tokens import Tokens
from tests.agent.bench import make_workspace, write_base
from tests.git_project import isolate_git
from tools.workspace import Workspace

Serve = Callable[..., MCPServer]
TOKENS = {"ada": "ada-" + "k3J9" * 8, "bob": "bob-" + "Zq7w" * 8}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def own_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_git(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def workspace(base: Path, tmp_path: Path) -> Workspace:
    root = tmp_path / "root" / "colours"
    root.mkdir(parents=True)
    return make_workspace(root, base)


@pytest.fixture
def serve(workspace: Workspace, base: Path) -> Serve:
    """Build a server over the workspace; keywords are its operator's settings."""

    def build(**settings: object) -> MCPServer:
        given = {"roots": (workspace.root.parent,), "model_dirs": (base.parent,), **settings}
        return build_server(Settings(**given))  # type: ignore[arg-type]

    return build


@pytest.fixture
def over_stdio(workspace: Workspace, base: Path) -> StdioServerParameters:
    arguments = [
        "-P",
        "-m",
        "mcp_server",
        "--root",
        str(workspace.root.parent),
        "--model-dir",
        str(base.parent),
    ]
    return StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))


@pytest.fixture
def url(workspace: Workspace, base: Path) -> Iterator[str]:
    """A server on a free port of loopback, for the principals ada and bob."""
    settings = Settings(roots=(workspace.root.parent,), model_dirs=(base.parent,))
    app = build_app(settings, Address("127.0.0.1", 0), Tokens(TOKENS))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mcp"
    server.should_exit = True
    thread.join()


def http(name: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(headers={"authorization": f"Bearer {TOKENS[name]}"}, timeout=30)


def edit_recipe(workspace: Workspace, **fields: Any) -> None:
    """Set fields of the workspace's recipe."""
    lines = [
        line
        for line in workspace.recipe_file.read_text("utf-8").splitlines()
        if line.partition(":")[0] not in fields
    ]
    lines += [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    workspace.recipe_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
