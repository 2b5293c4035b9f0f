"""`bakehouse mcp install`: the configuration starts this server, and keeps what was there."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

from mcp_server.commands import main
from tools.workspace import Workspace

pytestmark = pytest.mark.anyio


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["install", *arguments]) == 0
    return capsys.readouterr().out


async def test_what_is_printed_starts_the_server(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads(run(capsys, "claude-desktop", "--root", str(workspace.root), "--read-only"))
    entry = config["mcpServers"]["bakehouse"]
    assert set(entry) == {"command", "args"}
    async with Client(StdioServerParameters(**entry)) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert "poll" in names
        assert "train" not in names


@pytest.mark.parametrize(
    ("client", "field"),
    [
        ("claude-code", "mcpServers"),
        ("claude-desktop", "mcpServers"),
        ("cursor", "mcpServers"),
        ("vscode", "servers"),
    ],
)
def test_a_file_keeps_what_others_wrote(
    client: str, field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"theme": "dark", field: {"other": {"command": "x"}}}), encoding="utf-8")
    for name in ("one", "two", "one"):
        run(capsys, client, "--file", str(file), "--name", name, "--root", str(tmp_path))
    config = json.loads(file.read_text("utf-8"))
    assert config["theme"] == "dark"
    assert set(config[field]) == {"other", "one", "two"}
    assert config[field]["one"]["command"] == sys.executable


def test_a_file_that_is_not_plain_json_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"mcpServers": {}, // mine\n}', encoding="utf-8")
    assert main(["install", "cursor", "--file", str(file), "--root", str(tmp_path)]) == 1
    assert "by hand" in capsys.readouterr().err
    assert "// mine" in file.read_text("utf-8")


def test_over_ssh_the_remote_command_is_one_quoted_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run(capsys, "claude-code", "--ssh", "me@spark.local", "--root", "/data/my work; rm -rf x")
    entry = json.loads(text)["mcpServers"]["bakehouse"]
    assert entry["command"] == "ssh"
    assert entry["args"][-2] == "me@spark.local"
    remote = shlex.split(entry["args"][-1])
    assert remote == ["bakehouse", "mcp", "--root", "/data/my work; rm -rf x"]
    assert main(["install", "claude-code", "--ssh=-oProxyCommand=x"]) == 1


async def test_over_ssh_a_client_talks_to_the_server_of_the_other_machine(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As sshd does: the last argument goes to the user's shell, in another folder than the client's.
    there, programs = tmp_path / "there", tmp_path / "programs"
    there.mkdir()
    programs.mkdir()
    (programs / "ssh").write_text(f'#!/bin/sh\ncd "{there}" && for last; do :; done; exec sh -c "$last"\n')
    (there / "bakehouse").write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m agent "$@"\n')
    for path in (programs / "ssh", there / "bakehouse"):
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    remote = str(there / "bakehouse")
    text = run(
        capsys, "cursor", "--ssh", "me@spark.local", "--remote-command", remote, "--root", str(workspace.root)
    )
    entry = json.loads(text)["mcpServers"]["bakehouse"]
    async with Client(StdioServerParameters(**entry, env=dict(os.environ))) as client:
        found = await client.call_tool("lineage", {})
        assert found.structured_content is not None
        assert found.structured_content["total"] == 0


def test_the_command_line_of_bakehouse_has_the_server(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "agent", "mcp", "install", "cursor", "--root", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["mcpServers"]["bakehouse"]["args"][-1] == str(tmp_path)
    bad = subprocess.run(
        [sys.executable, "-P", "-m", "agent", "mcp", "--tools", "shell"], capture_output=True
    )
    assert bad.returncode == 1


def test_the_server_starts_without_the_commands_that_it_does_not_have() -> None:
    code = """
import sys
from agent.cli import main
sys.argv = ["bakehouse", "mcp", "--tools", "shell"]
try:
    main()
except SystemExit as err:
    print(err.code, sorted({"typer", "rich", "agent.cli.app", "mcp"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 []"
