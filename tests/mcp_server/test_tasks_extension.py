"""The tasks extension: to clients that declare it a started job is a task, to all others nothing changes."""

from __future__ import annotations

import sys
from typing import Any, Literal

import anyio
import pytest
from mcp import Client
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim, advertise
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, Request, RequestParams, Result
from pydantic import ConfigDict

from mcp_server.tasks_extension import IDENTIFIER
from tests.mcp_server.conftest import Serve
from tests.mcp_server.test_long_work import sleeper
from tools.jobs import cancel_job, list_jobs, start_job, wait_job
from tools.workspace import Workspace

pytestmark = pytest.mark.anyio


class TaskResult(Result):
    model_config = ConfigDict(extra="allow")
    result_type: Literal["task"] = "task"


class Task(Result):
    model_config = ConfigDict(extra="allow")


class Params(RequestParams):
    model_config = ConfigDict(extra="allow")


async def send(session: Any, method: str, task_id: str) -> dict[str, Any]:
    params = Params.model_validate({"taskId": task_id})
    found = await session.send_request(Request[Params, str](method=method, params=params), Task)
    return found.model_dump(by_alias=True, exclude_none=True)


class TaskClient(ClientExtension):
    """Polls a task to its end, as a client of the extension does; remembers what it saw."""

    identifier = IDENTIFIER

    def __init__(self, *, cancel: bool = False) -> None:
        self.seen: list[dict[str, Any]] = []
        self._cancel = cancel

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=TaskResult, resolve=self._resolve)]

    async def _resolve(self, created: TaskResult, ctx: ClaimContext) -> CallToolResult:
        task = created.model_dump(by_alias=True)
        self.seen.append(task)
        if self._cancel:
            await send(ctx.session, "tasks/cancel", task["taskId"])
        while True:
            task = await send(ctx.session, "tasks/get", task["taskId"])
            self.seen.append(task)
            if task["status"] != "working":
                return CallToolResult.model_validate(task.get("result", {"content": [], "isError": True}))
            await anyio.sleep(0.2)


async def test_a_started_job_is_a_task_whose_result_comes_inline(serve: Serve, workspace: Workspace) -> None:
    recipe = workspace.recipe_file
    text = recipe.read_text("utf-8").replace("data/train.jsonl", "data/selection.jsonl")
    recipe.write_text(text, encoding="utf-8")
    tasks = TaskClient()
    async with Client(serve(), extensions=[tasks]) as client:
        with anyio.fail_after(120):
            result = await client.call_tool("train", {})
    (job,) = list_jobs(workspace.jobs_dir)
    created = tasks.seen[0]
    assert created["taskId"] == job.id
    assert created["status"] == "working"
    assert created["ttlMs"] is None
    assert isinstance(created["pollIntervalMs"], int)
    # The run failed, on rows that judge it: a task that completed with an error in its result.
    assert tasks.seen[-1]["status"] == "completed"
    assert result.is_error
    assert "status: failed" in result.content[0].text  # type: ignore[union-attr]


async def test_a_task_that_succeeds_gives_the_tools_own_result(serve: Serve, workspace: Workspace) -> None:
    tasks = TaskClient()
    async with Client(serve(), extensions=[tasks]) as client:
        with anyio.fail_after(200):
            # The client holds the result to the tool's output schema.
            result = await client.call_tool("evaluate", {"split": "dev"})
    assert result.structured_content is not None
    assert result.structured_content["status"] == "succeeded"
    assert "32 items" in result.structured_content["result"]


async def test_a_cancelled_task_says_so(serve: Serve, workspace: Workspace) -> None:
    tasks = TaskClient(cancel=True)
    async with Client(serve(), extensions=[tasks]) as client:
        with anyio.fail_after(60):
            await client.call_tool("train", {})
    assert tasks.seen[-1]["status"] == "cancelled"
    assert "result" not in tasks.seen[-1]


async def test_a_client_that_declares_nothing_gets_a_job_id_and_no_tasks(
    serve: Serve, workspace: Workspace
) -> None:
    job = start_job(workspace.jobs_dir, "merge", [sys.executable, "-c", "pass"], cwd=workspace.root)
    wait_job(workspace.jobs_dir, job.id, timeout_s=30)
    async with Client(serve()) as client:
        with pytest.raises(MCPError) as refused:
            await send(client.session, "tasks/get", job.id)
        assert refused.value.error.code == -32021
    async with Client(serve(), extensions=[advertise(IDENTIFIER)]) as client:
        assert (await send(client.session, "tasks/get", job.id))["status"] == "completed"
        for method in ("tasks/get", "tasks/cancel", "tasks/update"):
            with pytest.raises(MCPError, match="no job") as unknown:
                await send(client.session, method, "nope")
            assert unknown.value.error.code == -32602


async def test_a_server_whose_operator_took_cancel_away_cancels_no_task(
    serve: Serve, workspace: Workspace
) -> None:
    job_id = sleeper(workspace)
    for settings in ({"read_only": True}, {"tools": ("poll", "train")}):
        async with Client(serve(**settings), extensions=[advertise(IDENTIFIER)]) as client:
            with pytest.raises(MCPError, match="does not let clients cancel"):
                await send(client.session, "tasks/cancel", job_id)
            assert (await send(client.session, "tasks/get", job_id))["status"] == "working"
    cancel_job(workspace.jobs_dir, job_id, grace_s=1)
