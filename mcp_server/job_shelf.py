"""Jobs as they are read again and again: one that has ended is read once."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tools.jobs import EXIT_FILE, JobRecord, list_jobs, read_job

_REMEMBERED: Final = 10_000


class JobShelf:
    """Remembers the jobs that left an exit record, which is written once and is the last that changes."""

    def __init__(self) -> None:
        self._ended: dict[tuple[Path, str], tuple[int, JobRecord]] = {}

    def read(self, jobs_dir: Path, job_id: str) -> JobRecord:
        """Return a job as `tools.jobs.read_job` does.

        Raises:
            JobError: the id is malformed, or there is no such job.
        """
        known = self._ended.get((jobs_dir, job_id))
        if known is not None and known[0] == _written_at(jobs_dir / job_id / EXIT_FILE):
            return known[1]
        job = read_job(jobs_dir, job_id)
        written_at = _written_at(job.folder / EXIT_FILE)
        if job.ended and written_at:
            if len(self._ended) >= _REMEMBERED:
                self._ended.clear()
            self._ended[jobs_dir, job_id] = (written_at, job)
        return job

    def list(self, jobs_dir: Path) -> tuple[JobRecord, ...]:
        """Return all jobs, oldest first."""
        return list_jobs(jobs_dir, read=self.read)


def _written_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
