"""What each client has to do with the server. A check that fails raises AssertionError."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from tests.clients.environment import ROOT, claude, environment, program, python

HERE = Path(__file__).resolve().parent
REVISIONS = ("2025-11-25", "2026-07-28")
PYTHON_CLIENTS = ("fastmcp", "pydantic-ai", "openai-agents")
LIMIT_S = 900.0
CLAUDE_LIMIT_S = 3600.0


class Body(Protocol):
    """Runs a check in a workspace and keeps what was said in a log."""

    def __call__(self, workspace: Path, log: Path) -> None: ...


@dataclass(frozen=True)
class Check:
    """A client, and the half of the environment that it needs."""

    needs: str
    body: Body


def all_checks() -> dict[str, Check]:
    """Return the checks by name, the quick ones first."""
    found = {"inspector": Check("node", inspect)}
    for client in PYTHON_CLIENTS:
        found[f"{client}-stdio"] = Check("python", partial(over_stdio, client))
        found[f"{client}-http"] = Check("python", partial(over_http, client))
    for revision in REVISIONS:
        found[f"conformance-{revision}"] = Check("node", partial(conform, revision))
    found["claude-code"] = Check("python", lead_claude)
    return found


def inspect(workspace: Path, log: Path) -> None:
    """Let the Inspector lint every schema: not one warning."""
    command = [program("mcp-inspector"), "--cli", *server(workspace), "--method", "tools/list", "--strict"]
    said = run(command, log)
    assert "Warning:" not in said, said[-2000:]


def over_stdio(client: str, workspace: Path, log: Path) -> None:
    """Run a Python client that starts the server itself."""
    run([python(), str(HERE / "python_clients.py"), client, "stdio", *server(workspace)], log)


def over_http(client: str, workspace: Path, log: Path) -> None:
    """Run a Python client against a server with a token."""
    token, port = secrets.token_urlsafe(32), free_port()
    command = [*server(workspace), "--http", f"127.0.0.1:{port}"]
    with serving(command, port, BAKEHOUSE_MCP_TOKEN=token):
        url = f"http://127.0.0.1:{port}/mcp"
        asked = [python(), str(HERE / "python_clients.py"), client, "http", url]
        run(asked, log, BAKEHOUSE_TEST_TOKEN=token)


def conform(revision: str, workspace: Path, log: Path) -> None:
    """Run the conformance suite on the fixture server; only what is listed may fail."""
    port = free_port()
    command = [sys.executable, "-P", str(HERE / "fixture_server.py"), str(workspace), str(port)]
    suite = [program("conformance"), "server", "--url", f"http://127.0.0.1:{port}/mcp"]
    suite += ["--requirements", revision]
    suite += ["--expected-failures", str(HERE / f"expected-failures-{revision}.yml")]
    with serving(command, port, PYTHONPATH=str(ROOT)):
        run(suite, log)


def lead_claude(workspace: Path, log: Path) -> None:
    """Let Claude Code itself train the demo, led by a scripted Messages API; it is killed on the way."""
    led = [sys.executable, "-P", str(HERE / "claude_code.py"), claude(), str(workspace), *server(workspace)]
    run(led, log, limit_s=CLAUDE_LIMIT_S)


def server(workspace: Path) -> list[str]:
    """Return the server's command."""
    return [sys.executable, "-P", "-m", "mcp_server", "--root", str(workspace)]


def run(command: Sequence[str], log: Path, *, limit_s: float = LIMIT_S, **env: str) -> str:
    """Run a command to its end, keep what it said in log, and return it.

    Raises:
        AssertionError: it failed, or took too long; nothing of it is left running.
    """
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | str = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = f"none within {limit_s:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = log.read_text("utf-8", errors="replace")
    assert code == 0, f"exit code {code}: {said[-2000:]}"
    return said


@contextmanager
def serving(command: Sequence[str], port: int, **env: str) -> Iterator[None]:
    """Hold a server up for the length of the block."""
    process = subprocess.Popen(
        command, env=environment(**env), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while refuses(port):
            assert process.poll() is None, "the server ended at once"
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def refuses(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])
