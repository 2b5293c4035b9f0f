"""Tells those who listen to `job://` that a job has moved, whoever moves it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from anyio.to_thread import run_sync
from mcp.server.subscriptions import InMemorySubscriptionBus, ServerEvent
from mcp.shared.subscriptions import ResourceUpdated

from mcp_server.owned_jobs import OwnedJobs, tell
from mcp_server.replies import hide_secrets
from tools.errors import BakehouseError

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 1.0


class _CountingBus(InMemorySubscriptionBus):
    """Knows how many listen, so that nothing is looked at for nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.n_listeners = 0

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        leave = super().subscribe(listener)
        self.n_listeners += 1
        gone = False

        def unsubscribe() -> None:
            nonlocal gone
            if not gone:
                gone = True
                self.n_listeners -= 1
            leave()

        return unsubscribe


class JobWatch:
    """Looks at the jobs once a second while somebody listens."""

    def __init__(self, jobs: OwnedJobs) -> None:
        self._jobs = jobs
        self._seen: dict[str, str] = {}
        self._ended: set[str] = set()
        self.bus = _CountingBus()

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Watch for as long as a transport serves. Several share what they have seen."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch)
            try:
                yield None
            finally:
                group.cancel_scope.cancel()

    async def _watch(self) -> None:
        while True:
            if self.bus.n_listeners:
                for uri in await run_sync(self._moved):
                    await self.bus.publish(ResourceUpdated(uri=uri))
            else:
                self._seen.clear()
            await anyio.sleep(_LOOK_EVERY_S)

    def _moved(self) -> list[str]:
        """Return the URIs of jobs that differ from the last look; the first look finds none."""
        moved: list[str] = []
        first = not self._seen
        try:
            for place, job in self._jobs.all():
                if job.id in self._ended:
                    continue
                if job.ended:
                    self._ended.add(job.id)
                facts = tell(place, job).model_dump_json(exclude={"log_tail"})
                if self._seen.get(job.id) != facts and not first:
                    moved.append(f"job://{job.id}")
                self._seen[job.id] = facts
        except (BakehouseError, OSError) as err:
            _LOG.warning("the jobs cannot be looked at: %s", hide_secrets(str(err)))
        return moved
