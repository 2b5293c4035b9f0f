"""The shelf: an ended job is read once, and nothing that may still change is remembered."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from mcp_server import job_shelf
from mcp_server.job_shelf import JobShelf
from tools.errors import JobError
from tools.jobs import JobRecord, cancel_job, read_job, start_job, wait_job


def job(jobs_dir: Path, program: str) -> str:
    return start_job(jobs_dir, "merge", [sys.executable, "-c", program], cwd=jobs_dir.parent).id


def test_an_ended_job_is_read_once_and_a_running_one_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs_dir = tmp_path / "jobs"
    ended = job(jobs_dir, "pass")
    wait_job(jobs_dir, ended, timeout_s=60)
    running = job(jobs_dir, "import time; time.sleep(1000)")
    read: list[str] = []

    def counted(folder: Path, job_id: str) -> JobRecord:
        read.append(job_id)
        return read_job(folder, job_id)

    monkeypatch.setattr(job_shelf, "read_job", counted)
    shelf = JobShelf()
    for _ in range(3):
        assert [one.status for one in shelf.list(jobs_dir)] == ["succeeded", "running"]
    assert read == [ended, running, running, running]
    cancel_job(jobs_dir, running, grace_s=1)
    assert shelf.read(jobs_dir, running).status == "cancelled"


def test_a_job_that_a_person_removed_is_gone(tmp_path: Path) -> None:
    jobs_dir = tmp_path / "jobs"
    ended = job(jobs_dir, "pass")
    wait_job(jobs_dir, ended, timeout_s=60)
    shelf = JobShelf()
    assert shelf.read(jobs_dir, ended).ended
    shutil.rmtree(jobs_dir / ended)
    with pytest.raises(JobError, match="no job"):
        shelf.read(jobs_dir, ended)
    assert shelf.list(jobs_dir) == ()
