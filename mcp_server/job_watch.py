"""Tells those who listen to `job://` that a job has moved, whoever moves it."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync
from mcp.server.subscriptions import InMemorySubscriptionBus, ServerEvent
from mcp.shared.subscriptions import ResourceUpdated

from mcp_server.boundary import principal
from mcp_server.owned_jobs import OwnedJobs, belongs_to, tell, uri_of_job
from mcp_server.replies import hide_secrets
from tools.errors import BakehouseError
from tools.jobs import JobRecord

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 1.0
_END: Final = "ended"


@dataclass(frozen=True)
class JobMoved(ResourceUpdated):
    """A job's resource has changed; the job says whose it is."""

    job: JobRecord


class _Bus(InMemorySubscriptionBus):
    """Tells when the first listener comes, and lets each hear of its own principal's jobs alone."""

    def __init__(self, on_first: Callable[[], object]) -> None:
        super().__init__()
        self._on_first = on_first
        self.n_listeners = 0

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        who = principal()

        def hear(event: ServerEvent) -> None:
            if not isinstance(event, JobMoved) or belongs_to(event.job, who):
                listener(event)

        if not self.n_listeners:
            self._on_first()
        leave = super().subscribe(hear)
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
        self._looking = threading.Lock()
        # What a listener is told is what changed since it came: the first look is taken before it hears.
        self.bus = _Bus(self._look)

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[TaskGroup]:
        """Watch for as long as a transport serves, and lend it the group that tells its sessions.

        Several transports share what they have seen.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch)
            try:
                yield group
            finally:
                group.cancel_scope.cancel()

    async def _watch(self) -> None:
        # The first look is taken for nobody too: it reads all that ever ran, which no client has to wait for.
        is_first = True
        while True:
            await anyio.sleep(_LOOK_EVERY_S)
            if is_first or self.bus.n_listeners:
                is_first = False
                for job in await run_sync(self._look):
                    await self.bus.publish(JobMoved(uri_of_job(job.id), job))

    def _look(self) -> list[JobRecord]:
        """Return the jobs that differ from the last look."""
        moved: list[JobRecord] = []
        with self._looking:
            try:
                for place, job in self._jobs.all():
                    facts = tell(place, job).model_dump_json(exclude={"log_tail"}) if not job.ended else _END
                    if self._seen.get(job.id) != facts:
                        moved.append(job)
                    self._seen[job.id] = facts
            except (BakehouseError, OSError) as err:
                _LOG.warning("the jobs cannot be looked at: %s", hide_secrets(str(err)))
        return moved
