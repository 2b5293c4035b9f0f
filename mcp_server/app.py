"""The server: the operator's toolset, the resources and the prompts over one set of workspaces."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from mcp.server.auth.provider import TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.extension import Extension
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations

from mcp_server.boundary import make_tool
from mcp_server.evidence_tools import EvidenceTools
from mcp_server.job_tools import JobTools
from mcp_server.job_watch import JobWatch
from mcp_server.owned_jobs import OwnedJobs
from mcp_server.prompts import add_prompts
from mcp_server.resources import add_resources
from mcp_server.settings import Settings
from mcp_server.subscribers import Subscribers
from mcp_server.tasks_extension import STARTERS, TasksExtension
from mcp_server.workspaces import Confined

INSTRUCTIONS: Final = (
    "Fine-tuning on the machine that this server runs on. validate_recipe, then train or start_bakeoff; "
    "both return a job_id at once, and poll tells how far it is. Jobs outlive this connection: poll without "
    "a job_id finds them again. A change is kept only on evidence: evaluate, then compare."
)
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_STARTS = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False
)
_REPEATABLE = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)
_DESTROYS = ToolAnnotations(
    read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
)


def build_server(
    settings: Settings,
    *,
    token_verifier: TokenVerifier | None = None,
    auth: AuthSettings | None = None,
    extensions: Sequence[Extension] = (),
    extra_tools: Sequence[Tool] = (),
    extra_starters: Sequence[str] = (),
    extra_subscribable: Sequence[str] = (),
) -> MCPServer[Any]:
    """Return a server that is ready to be run on any transport.

    Args:
        settings: What the operator decided.
        token_verifier: Knows the tokens of an HTTP server; needs auth beside it.
        auth: The SDK's settings for token_verifier.
        extensions: Served beside the tasks extension.
        extra_tools: Served beside the toolset; for tests of the protocol.
        extra_starters: Those of extra_tools that start a job.
        extra_subscribable: URIs besides `job://` that can be subscribed to; for tests of the protocol.
    """
    house = Confined(settings)
    jobs = OwnedJobs(house)
    watch = JobWatch(jobs)
    tools = {tool.name: tool for tool in _make_tools(house, jobs)}
    server: MCPServer[Any] = MCPServer(
        "bakehouse",
        title="Bakehouse",
        version=_version(),
        instructions=INSTRUCTIONS,
        tools=[*(tools[name] for name in settings.enabled), *extra_tools],
        subscriptions=watch.bus,
        lifespan=watch.lifespan,
        extensions=[TasksExtension(jobs, starters={*STARTERS, *extra_starters}), *extensions],
        token_verifier=token_verifier,
        auth=auth,
        log_level="WARNING",
    )
    add_resources(server, house, jobs)
    # The SDK's own way in for methods that its newest revision dropped; it has no public name for it.
    Subscribers(jobs, watch.bus, other_uris=extra_subscribable).serve_on(server._lowlevel_server)
    add_prompts(server, settings)
    return server


def _make_tools(house: Confined, jobs: OwnedJobs) -> list[Tool]:
    work, evidence = JobTools(house, jobs), EvidenceTools(house, jobs)
    allowed = house.settings.allow_expensive
    return [
        make_tool(evidence.validate_recipe, _READS),
        make_tool(work.train, _STARTS, asks=work.ask_train, allowed=allowed),
        make_tool(work.poll, _READS),
        make_tool(work.cancel, _DESTROYS),
        make_tool(work.evaluate, _STARTS),
        make_tool(evidence.compare, _READS),
        make_tool(evidence.lineage, _READS),
        make_tool(work.start_bakeoff, _STARTS, asks=work.ask_bakeoff, allowed=allowed),
        make_tool(work.merge, _DESTROYS, asks=work.ask_merge, allowed=allowed),
        make_tool(evidence.standardize, _REPEATABLE),
        make_tool(work.probe, _STARTS),
        make_tool(evidence.decide, _READS),
        make_tool(evidence.refresh, _READS),
    ]


def _version() -> str:
    try:
        return version("bakehouse")
    except PackageNotFoundError:
        return "unknown"
