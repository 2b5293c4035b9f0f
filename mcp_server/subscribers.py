"""`resources/subscribe` and `unsubscribe`, of the revisions that begin with a handshake.

Revision 2026-07-28 has `subscriptions/listen` in their place, which the SDK serves from the same bus.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.session import ServerSession
from mcp.server.subscriptions import ResourceUpdated, ServerEvent, SubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, EmptyResult, SubscribeRequestParams, UnsubscribeRequestParams

from mcp_server.owned_jobs import OwnedJobs, job_of_uri
from tools.errors import JobError

MAX_PER_SESSION: Final = 64
_SEND_S: Final = 10.0
_KEPT_AS: Final = "bakehouse.subscriber"

Request = ServerRequestContext[TaskGroup, Any]


class MethodServer(Protocol):
    """What a method can be added to."""

    def add_request_handler(self, method: str, params_type: Any, handler: Any) -> None:
        """Serve a method with a handler."""


class Subscribers:
    """Lets each session hear of the jobs it subscribed to, for as long as it lives."""

    def __init__(self, jobs: OwnedJobs, bus: SubscriptionBus, *, other_uris: Collection[str] = ()) -> None:
        """Take the jobs that may be subscribed to, and other URIs that may be as well."""
        self._jobs, self._bus = jobs, bus
        self._other_uris = frozenset(other_uris)

    def serve_on(self, server: MethodServer) -> None:
        """Add the two methods; what the server says of its capabilities follows by itself."""
        server.add_request_handler("resources/subscribe", SubscribeRequestParams, self._subscribe)
        server.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, self._unsubscribe)

    async def _subscribe(self, ctx: Request, params: SubscribeRequestParams) -> EmptyResult:
        uri = str(params.uri)
        if uri not in self._other_uris:
            await run_sync(self._check, uri)
        _subscriber(ctx, self._bus).add(uri)
        return EmptyResult()

    async def _unsubscribe(self, ctx: Request, params: UnsubscribeRequestParams) -> EmptyResult:
        _subscriber(ctx, self._bus).remove(str(params.uri))
        return EmptyResult()

    def _check(self, uri: str) -> None:
        """Refuse what never changes, what is not there, and what is another principal's."""
        job_id = job_of_uri(uri)
        if job_id is None:
            raise MCPError(
                INVALID_PARAMS, f"{uri[:80]!r} tells of no changes; job://ID does, a job's id in it"
            )
        try:
            self._jobs.find(job_id)
        except JobError as err:
            raise MCPError(INVALID_PARAMS, str(err)) from err


class _Subscriber:
    """One session: what it wants to hear of, and what it was not told yet."""

    def __init__(self, session: ServerSession, bus: SubscriptionBus, group: TaskGroup) -> None:
        self._session, self._bus = session, bus
        self._uris: set[str] = set()
        # A set, so that a client that reads slowly is told once and costs no more.
        self._untold: set[str] = set()
        self._news = anyio.Event()
        self._scope = anyio.CancelScope()
        self._leave: Callable[[], None] | None = None
        group.start_soon(self._tell)

    def add(self, uri: str) -> None:
        """Subscribe to a URI."""
        if uri not in self._uris and len(self._uris) >= MAX_PER_SESSION:
            raise MCPError(
                INVALID_PARAMS,
                f"this session has {MAX_PER_SESSION} subscriptions, the most; take one back with unsubscribe",
            )
        self._uris.add(uri)
        if self._leave is None:
            self._leave = self._bus.subscribe(self._hear)

    def remove(self, uri: str) -> None:
        """Take a subscription back, where there is one."""
        self._uris.discard(uri)
        self._untold.discard(uri)
        if not self._uris and self._leave is not None:
            self._leave()
            self._leave = None

    def close(self) -> None:
        """End all of it, with the session."""
        for uri in tuple(self._uris):
            self.remove(uri)
        self._scope.cancel()

    def _hear(self, event: ServerEvent) -> None:
        if isinstance(event, ResourceUpdated) and event.uri in self._uris:
            self._untold.add(event.uri)
            self._news.set()

    async def _tell(self) -> None:
        with self._scope:
            while True:
                await self._news.wait()
                self._news = anyio.Event()
                while self._untold:
                    # A client that stopped reading holds up nobody: what is not taken is dropped.
                    with anyio.move_on_after(_SEND_S):
                        await self._session.send_resource_updated(self._untold.pop())


def _subscriber(ctx: Request, bus: SubscriptionBus) -> _Subscriber:
    """Return the session's subscriber, which is made once and ends with the session."""
    # The SDK's handlers are not handed the connection, the only thing that knows when a session ends.
    connection: Connection = ctx.session._connection
    found = connection.state.get(_KEPT_AS)
    if not isinstance(found, _Subscriber):
        found = _Subscriber(ctx.session, bus, ctx.lifespan_context)
        connection.state[_KEPT_AS] = found
        connection.exit_stack.callback(found.close)
    return found
