"""The tasks extension over the same jobs: a client that declares it gets a task where others get a job id.

Source: SEP-2663 of the Model Context Protocol, revision 2026-07-28.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from anyio.to_thread import run_sync
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver.server import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp_types import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    RequestParams,
)
from pydantic import Field

from mcp_server.owned_jobs import OwnedJobs, tell
from mcp_server.replies import Started, to_result
from tools.errors import JobError
from tools.jobs import JobRecord

if TYPE_CHECKING:
    from tools.workspace import Workspace

IDENTIFIER: Final = "io.modelcontextprotocol/tasks"
STARTERS: Final = frozenset({"train", "evaluate", "start_bakeoff", "merge", "probe"})
_VERSIONS: Final = frozenset({"2026-07-28"})
_POLL_MS: Final = 5000

TaskStatus = Literal["working", "completed", "cancelled"]


class TaskParams(RequestParams):
    """Names a task."""

    task_id: str = Field(alias="taskId")


class UpdateParams(TaskParams):
    """Answers to what a task asked. No job asks anything once it runs."""

    input_responses: dict[str, Any] = Field(default_factory=dict, alias="inputResponses")


class TasksExtension(Extension):
    """Serves tasks/get, tasks/update and tasks/cancel, and turns started jobs into tasks."""

    identifier = IDENTIFIER

    def __init__(self, jobs: OwnedJobs, *, starters: Collection[str] = STARTERS) -> None:
        self._jobs = jobs
        self._starters = frozenset(starters)

    def methods(self) -> Sequence[MethodBinding]:
        """Return the three methods, of the revision that has the extension."""
        return (
            MethodBinding("tasks/get", TaskParams, self._get, _VERSIONS),
            MethodBinding("tasks/update", UpdateParams, self._update, _VERSIONS),
            MethodBinding("tasks/cancel", TaskParams, self._cancel, _VERSIONS),
        )

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Answer a call that started a job with a task, where the client knows tasks."""
        result = await call_next(ctx)
        if (
            params.name not in self._starters
            or not _declares_tasks(ctx)
            or not isinstance(result, CallToolResult)
            or result.is_error
            or result.structured_content is None
        ):
            return result
        place, job = await run_sync(self._find, str(result.structured_content["job_id"]))
        return {"resultType": "task", **_envelope(place, job)}

    async def _get(self, ctx: ServerRequestContext[Any, Any], params: TaskParams) -> HandlerResult:
        _check_request(ctx, params)
        return await run_sync(self._task, params.task_id)

    async def _update(self, ctx: ServerRequestContext[Any, Any], params: UpdateParams) -> HandlerResult:
        _check_request(ctx, params)
        await run_sync(self._find, params.task_id)
        return {"resultType": "complete"}

    async def _cancel(self, ctx: ServerRequestContext[Any, Any], params: TaskParams) -> HandlerResult:
        _check_request(ctx, params)
        if "cancel" not in self._jobs.house.settings.enabled:
            raise MCPError(
                code=INVALID_PARAMS,
                message="the operator of this server does not let clients cancel; poll the task to its end",
            )
        place, job = await run_sync(self._find, params.task_id)
        # What is saved takes its time; the client sees the end by tasks/get.
        self._jobs.start_cancelling(place, job)
        return {"resultType": "complete"}

    def _find(self, task_id: str) -> tuple[Workspace, JobRecord]:
        try:
            return self._jobs.find(task_id)
        except JobError as err:
            raise MCPError(code=INVALID_PARAMS, message=str(err)) from err

    def _task(self, task_id: str) -> dict[str, Any]:
        place, job = self._find(task_id)
        return {"resultType": "complete", **_envelope(place, job), **_outcome(place, job)}


def _check_request(ctx: ServerRequestContext[Any, Any], params: TaskParams) -> None:
    """Refuse a client that does not know tasks, and over HTTP a routing header that names another task."""
    require_client_extension(ctx, IDENTIFIER)
    headers = getattr(ctx.request, "headers", None)
    if headers is not None and headers.get("mcp-name") != params.task_id:
        raise MCPError(code=HEADER_MISMATCH, message="the header Mcp-Name must hold the taskId")


def _declares_tasks(ctx: ServerRequestContext[Any, Any]) -> bool:
    capabilities = ctx.session.client_capabilities
    return capabilities is not None and IDENTIFIER in (capabilities.extensions or {})


def _envelope(place: Workspace, job: JobRecord) -> dict[str, Any]:
    return {
        "taskId": job.id,
        "status": _status(job),
        "statusMessage": f"{job.kind} in {place.root.name}: {job.status}",
        "createdAt": job.created_at,
        "lastUpdatedAt": job.ended_at or job.started_at or job.created_at,
        # Jobs are kept until a person removes them.
        "ttlMs": None,
        "pollIntervalMs": _POLL_MS,
    }


def _outcome(place: Workspace, job: JobRecord) -> dict[str, Any]:
    """Return the result of a task that is completed: a run that failed is one with an error in it."""
    if _status(job) != "completed":
        return {}
    told = tell(place, job)
    if job.status == "succeeded":
        result = to_result(Started(job_id=job.id, status=job.status, result=told.result, next=told.next))
    else:
        result = CallToolResult(content=to_result(told).content, is_error=True)
    return {"result": result.model_dump(mode="json", by_alias=True, exclude_none=True)}


def _status(job: JobRecord) -> TaskStatus:
    if not job.ended:
        return "working"
    return "cancelled" if job.status == "cancelled" else "completed"
