"""What a client cannot do: leave the roots, choose what is executed, read secrets, end the server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp_types import TextContent

from mcp_server.replies import HIDDEN, hide_secrets
from tests.mcp_server.conftest import Serve, edit_recipe
from tools.jobs import list_jobs, start_job, wait_job
from tools.workspace import Workspace

pytestmark = pytest.mark.anyio
SECRET = "hf_" + "aB3dE5gH7jK9" * 3


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    block = result.content[0]
    assert isinstance(block, TextContent)
    assert result.is_error, block.text
    return block.text


@pytest.mark.parametrize(
    "name", ["../outside.yaml", "link.yaml", "/etc/passwd.yaml", "~/x.yaml", "a\0b.yaml"]
)
async def test_a_recipe_outside_the_workspace_is_refused(
    serve: Serve, workspace: Workspace, name: str
) -> None:
    outside = workspace.root.parent / "outside.yaml"
    shutil.copy(workspace.recipe_file, outside)
    (workspace.root / "link.yaml").symlink_to(outside)
    async with Client(serve()) as client:
        text = await refused(client, "train", recipe=name)
    assert "workspace" in text
    assert not list_jobs(workspace.jobs_dir)


@pytest.mark.parametrize("field", ["dataset_jsonl", "output_dir", "system_prompt_file"])
async def test_a_recipe_that_points_outside_is_refused(
    serve: Serve, workspace: Workspace, field: str
) -> None:
    edit_recipe(workspace, **{field: "../elsewhere"})
    async with Client(serve()) as client:
        assert "leaves the workspace" in await refused(client, "train")


async def test_a_base_model_outside_of_what_the_operator_named_is_refused(
    serve: Serve, workspace: Workspace
) -> None:
    async with Client(serve(model_dirs=())) as client:
        assert "--model-dir" in await refused(client, "train")


@pytest.mark.parametrize(
    "fields",
    [
        {"backend": "nemo"},
        {"backend": "unsloth", "container": "evil"},
        {"container": "evil"},
        {"extra_env": {"TRAIN_SCRIPT": "rm -rf /"}},
    ],
)
async def test_what_a_lane_executes_is_not_the_clients_to_choose(
    serve: Serve, workspace: Workspace, fields: dict[str, Any]
) -> None:
    edit_recipe(workspace, **fields)
    async with Client(serve()) as client:
        for tool in ("train", "start_bakeoff", "evaluate"):
            await refused(client, tool)
        validated = await client.call_tool("validate_recipe", {})
        assert validated.structured_content is not None
        assert validated.structured_content["ok"] is False
    assert not list_jobs(workspace.jobs_dir)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("evaluate", {"adapter": "../../etc"}),
        ("start_bakeoff", {"plan": "../plan.yaml"}),
        ("standardize", {"path": ".."}),
        ("probe", {"questions": "/etc/passwd"}),
        ("compare", {"base": "../../x", "candidate": "base"}),
        ("poll", {"job_id": "../../../etc/passwd"}),
        ("cancel", {"job_id": ""}),
        ("lineage", {"workspace": "../.."}),
    ],
)
async def test_no_argument_leaves_the_roots(
    serve: Serve, workspace: Workspace, tool: str, arguments: dict[str, Any]
) -> None:
    (workspace.root.parent / "plan.yaml").write_text("- {lora_rank: 4}\n", encoding="utf-8")
    async with Client(serve()) as client:
        await refused(client, tool, **arguments)


async def test_a_workspace_behind_a_link_is_not_served(serve: Serve, workspace: Workspace) -> None:
    elsewhere = workspace.root.parent.parent / "elsewhere"
    shutil.copytree(workspace.root, elsewhere)
    (workspace.root.parent / "sly").symlink_to(elsewhere)
    async with Client(serve()) as client:
        assert "['colours']" in await refused(client, "lineage", workspace="sly")


async def test_two_workspaces_are_told_apart(serve: Serve, workspace: Workspace) -> None:
    shutil.copytree(workspace.root, workspace.root.parent / "shapes")
    async with Client(serve()) as client:
        assert "['colours', 'shapes']" in await refused(client, "validate_recipe")
        good = await client.call_tool("validate_recipe", {"workspace": "shapes"})
        assert good.structured_content is not None
        assert good.structured_content["ok"] is True
        corpus = await client.call_tool("decide", {"question": "train_backend", "optimize_for": "wall_clock"})
        assert not corpus.is_error


async def test_secrets_in_a_log_are_hidden_everywhere(serve: Serve, workspace: Workspace) -> None:
    program = f"print('before'); print('token {SECRET}'); print('after'); raise SystemExit(3)"
    argv = [sys.executable, "-c", program.replace(SECRET, "'+'".join((SECRET[:9], SECRET[9:])))]
    job = start_job(workspace.jobs_dir, "merge", argv, cwd=workspace.root)
    wait_job(workspace.jobs_dir, job.id, timeout_s=30)
    assert SECRET in job.log_path.read_text("utf-8")
    async with Client(serve()) as client:
        polled = await client.call_tool("poll", {"job_id": job.id})
        page = await client.read_resource(f"job://{job.id}/log")
    for text in (polled.model_dump_json(), page.model_dump_json()):
        assert SECRET not in text
        assert "before" in text
        assert "after" in text
    assert hide_secrets({"a": [f"x {SECRET}"]}) == {"a": [HIDDEN]}


async def test_a_huge_argument_costs_an_error(serve: Serve) -> None:
    async with Client(serve()) as client:
        assert "too large" in await refused(client, "train", recipe="x" * 5000)
        many = {f"k{i}": "v" for i in range(100)}
        assert "too large" in await refused(client, "decide", question="q", optimize_for="x", context=many)
        assert (await client.call_tool("refresh", {})).structured_content


def test_malformed_input_costs_an_error_and_not_the_server(over_stdio: StdioServerParameters) -> None:
    initialize = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "raw", "version": "0"},
        },
    }
    nested = '{"jsonrpc":"2.0","id":5,"method":"tools/list","params":' + "[" * 5000 + "]" * 5000 + "}"
    calls = [
        json.dumps(initialize),
        json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        "this is no JSON",
        '{"jsonrpc":"2.0","id":4,"method":42}',
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        nested,
        json.dumps({"jsonrpc": "2.0", "id": 6, "method": "tools/call", "params": {"name": "x" * 100_000}}),
        json.dumps({"jsonrpc": "2.0", "id": 7, "method": "tools/list"}),
    ]
    server = subprocess.Popen(
        [over_stdio.command, *over_stdio.args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=dict(os.environ),
    )
    answers: dict[Any, Any] = {}
    with server, server.stdin as stdin, server.stdout as stdout:  # type: ignore[union-attr]
        stdin.write("\n".join(calls) + "\n")
        stdin.flush()
        while not {6, 7} <= set(answers):
            answer = json.loads(stdout.readline())
            answers[answer.get("id")] = answer
    assert len(answers[7]["result"]["tools"]) == 13
    assert answers[6].get("error") or answers[6]["result"]["isError"]


async def test_where_no_workspace_is_the_corpus_still_answers(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "empty").mkdir()
    async with Client(serve(roots=(tmp_path / "empty",))) as client:
        assert "bakehouse init" in await refused(client, "train")
        found = await client.call_tool("decide", {"question": "train_backend", "optimize_for": "wall_clock"})
        assert found.structured_content is not None
        assert found.structured_content["pick"]
