"""Jobs as the clients of a server see them: whose they are, where they lie, how they are told."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Thread
from typing import TYPE_CHECKING, Final

from mcp_server.boundary import LOCAL, principal
from mcp_server.job_shelf import JobShelf
from mcp_server.replies import Polled, Started
from mcp_server.workspaces import Confined
from tools.errors import JobError
from tools.jobs import JobRecord, cancel_job

if TYPE_CHECKING:
    from tools.workspace import Workspace

_LOG = logging.getLogger(__name__)
MAX_RUNNING: Final = 4
_PREFIX: Final = "mcp"
_SCHEME: Final = "job://"
_LISTED: Final = 20


@dataclass(frozen=True)
class OwnedJobs:
    """The jobs below the roots. Over HTTP each token sees those it started; over stdio all are seen."""

    house: Confined
    shelf: JobShelf = field(default_factory=JobShelf)
    ending: dict[str, Thread] = field(default_factory=dict)

    def start(self, workspace: Workspace, key: str, launch: Callable[[str], JobRecord]) -> Started:
        """Start a job under the client's key, made up where it gave none.

        Raises:
            JobError: too many jobs run already, or the key stands for another command.
        """
        owned_key = _owned(key or secrets.token_hex(16))
        jobs = self.shelf.list(workspace.jobs_dir)
        running = [job for job in jobs if not job.ended]
        if len(running) >= MAX_RUNNING and all(job.idempotency_key != owned_key for job in jobs):
            mine = ", ".join(job.id for job in running if _is_mine(job))
            raise JobError(
                f"{len(running)} jobs run already ({mine or 'of others'}); poll one to its end, or cancel one"
            )
        job = launch(owned_key)
        return Started(job_id=job.id, status=job.status, next=f"poll(job_id={job.id!r}) until ended is true")

    def has_key(self, workspace: Workspace, key: str) -> bool:
        """Return whether the caller's key stands for a job already, so that a call with it starts nothing."""
        owned_key = _owned(key)
        return bool(key) and any(
            job.idempotency_key == owned_key for job in self.shelf.list(workspace.jobs_dir)
        )

    def find(self, job_id: str) -> tuple[Workspace, JobRecord]:
        """Return a job and its workspace.

        Raises:
            JobError: there is no such job, or it is another principal's.
        """
        for workspace in self.house.all().values():
            try:
                job = self.shelf.read(workspace.jobs_dir, job_id)
            except JobError:
                continue
            if _is_mine(job):
                return workspace, job
        raise JobError(f"no job {job_id[:80]!r}; poll without a job_id lists those there are")

    def start_cancelling(self, workspace: Workspace, job: JobRecord) -> Thread:
        """Return the thread that ends a job; one at a time, however often it is asked for."""
        known = self.ending.get(job.id)
        if known is not None and known.is_alive():
            return known
        thread = Thread(target=self._cancel, args=(workspace, job.id), daemon=True)
        self.ending[job.id] = thread
        thread.start()
        return thread

    def all(self, name: str = "") -> list[tuple[Workspace, JobRecord]]:
        """Return every job of the caller, the newest first, of one workspace where one is named."""
        places = [self.house.find(name)] if name else self.house.all().values()
        found = [(place, job) for place in places for job in self.shelf.list(place.jobs_dir) if _is_mine(job)]
        return sorted(found, key=lambda pair: pair[1].id, reverse=True)

    def newest(self, name: str) -> tuple[Workspace, JobRecord, list[str]]:
        """Return the caller's newest job and a line for each of the newest twenty.

        Raises:
            JobError: there is none.
        """
        jobs = self.all(name)
        if not jobs:
            raise JobError("there is no job yet; train, evaluate, probe or start_bakeoff makes one")
        lines = [f"{job.id}: {job.status}, {place.root.name}" for place, job in jobs[:_LISTED]]
        return (*jobs[0], lines)

    def _cancel(self, workspace: Workspace, job_id: str) -> None:
        try:
            cancel_job(workspace.jobs_dir, job_id)
        except (JobError, OSError) as err:
            _LOG.warning("job %s cannot be cancelled: %s", job_id, err)
        finally:
            self.ending.pop(job_id, None)


def tell(workspace: Workspace, job: JobRecord, jobs: list[str] | None = None) -> Polled:
    """Return what is known of a job, and what to do next."""
    from agent.job_state import look_at_job

    state = look_at_job(workspace, job)
    bad = job.status in ("failed", "lost")
    tail = "" if job.status == "succeeded" else job.log_tail(15 if bad else 3)
    adapter = state.adapter
    return Polled(
        job_id=job.id,
        kind=job.kind,
        status=job.status,
        ended=job.ended,
        phase=None if job.ended else state.phase,
        step=state.step,
        total_steps=state.total_steps,
        loss=state.loss,
        score=state.score,
        adapter=None if adapter is None else str(adapter.relative_to(workspace.root.resolve())),
        result=state.result,
        error=job.error,
        log_tail=tail[-2000:] or None,
        poll_again_s=None if job.ended else _patience_s(job),
        jobs=jobs,
        next=_advice(job),
    )


def belongs_to(job: JobRecord, who: str) -> bool:
    """Return whether a principal may see a job; the local user may see all."""
    return who == LOCAL or (job.idempotency_key or "").startswith(f"{_PREFIX}/{who}/")


def uri_of_job(job_id: str) -> str:
    """Return the resource that a job is."""
    return f"{_SCHEME}{job_id}"


def job_of_uri(uri: str) -> str | None:
    """Return the job's id that a resource's URI names, or None where it names another kind or a part."""
    job_id = uri.removeprefix(_SCHEME)
    return None if job_id == uri or "/" in job_id or "?" in job_id else job_id


def _owned(key: str) -> str:
    return f"{_PREFIX}/{principal()}/{key}"


def _is_mine(job: JobRecord) -> bool:
    return belongs_to(job, principal())


def _patience_s(job: JobRecord) -> float:
    return 30.0 if job.kind == "flywheel" else 5.0


def _advice(job: JobRecord) -> str:
    if not job.ended:
        return f"poll(job_id={job.id!r}) again in {_patience_s(job):.0f} s, or cancel it"
    if job.status == "cancelled":
        return "it was cancelled; what it saved until then stays"
    if job.status != "succeeded":
        return f"read error and log_tail (all of it: resource job://{job.id}/log), mend it, start it anew"
    return {
        "train": f"evaluate(adapter={job.id!r}), then compare with a base",
        "eval": f"compare(base=..., candidate={job.id!r}) on the same split",
        "probe": f"compare(base=..., candidate={job.id!r}, split='probe')",
        "flywheel": "lineage shows the trials; a person approves by merging the bakeoff branch",
        "merge": "the export is ready to be served",
    }.get(job.kind, "nothing is left to do")
