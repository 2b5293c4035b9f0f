"""The configuration by which a client starts this server."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Final

from mcp_server.commands import read_settings
from mcp_server.settings import FREE_ROWS
from tools.errors import McpError
from tools.files import write_json_atomic

_FIELDS: Final = {"vscode": "servers"}


def install(options: argparse.Namespace) -> str:
    """Return the configuration as text, or write it and return what was done.

    Raises:
        McpError: an option is wrong, or the client's file holds what cannot be kept.
    """
    if options.http or options.token_file or options.allowed_host:
        raise McpError("a client starts the server itself, over stdio; leave --http and its options out")
    if not options.ssh:
        read_settings(options)
    entry = _entry(options)
    field = _FIELDS.get(options.client, "mcpServers")
    if not options.write and options.file is None:
        return json.dumps({field: {options.name: entry}}, indent=2)
    path = options.file or _client_file(options.client)
    return _write(path.expanduser(), field, options.name, entry)


def _entry(options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "mcp_server", *_server_arguments(options)]
    if options.ssh:
        # This machine's paths mean nothing on that one.
        remote = [options.remote_command, "mcp", *_server_arguments(options)]
        command = ["ssh", "-T", "-o", "BatchMode=yes", options.ssh, shlex.join(remote)]
        if options.ssh.startswith("-"):
            raise McpError(f"--ssh is {options.ssh!r}; a host is allowed, such as user@spark.local")
    entry: dict[str, Any] = {"command": command[0], "args": command[1:]}
    return {"type": "stdio", **entry} if options.client in ("claude-code", "vscode") else entry


def _server_arguments(options: argparse.Namespace) -> list[str]:
    found: list[str] = []
    for root in options.root or [Path.cwd()]:
        found += ["--root", str(root) if options.ssh else str(root.expanduser().resolve())]
    found += ["--read-only"] if options.read_only else []
    found += ["--tools", options.tools] if options.tools else []
    found += ["--exclude-tools", options.exclude_tools] if options.exclude_tools else []
    found += ["--allow-expensive"] if options.allow_expensive else []
    found += ["--free-rows", str(options.free_rows)] if options.free_rows != FREE_ROWS else []
    found += ["--lanes", options.lanes] if options.lanes != "local" else []
    for folder in options.model_dir:
        found += ["--model-dir", str(folder) if options.ssh else str(folder.expanduser().resolve())]
    return found


def _client_file(client: str) -> Path:
    """Return where a client reads its servers from: the project's folder, or the user's settings."""
    if client == "claude-code":
        return Path(".mcp.json")
    if client == "cursor":
        return Path(".cursor") / "mcp.json"
    if client == "vscode":
        return Path(".vscode") / "mcp.json"
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return base / "Claude" / "claude_desktop_config.json"


def _write(path: Path, field: str, name: str, entry: dict[str, Any]) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = "{}"
    except OSError as err:
        raise McpError(f"{path} cannot be read: {err.strerror}") from err
    try:
        config = json.loads(text or "{}")
    except ValueError as err:
        raise McpError(f"{path} is no plain JSON ({err}); add what `install` prints by hand") from err
    if not isinstance(config, dict) or not isinstance(config.get(field, {}), dict):
        raise McpError(f"{path} has no mapping {field!r}; add what `install` prints by hand")
    config[field] = {**config.get(field, {}), name: entry}
    try:
        write_json_atomic(path.resolve(), config)
    except OSError as err:
        raise McpError(f"{path} cannot be written: {err.strerror}") from err
    return f"wrote {name!r} to {path}; restart the client, or let it read its servers again"
