"""Detached jobs: commands that outlive whoever started them, their truth on disk."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from tools.child import child_environment, is_alive, started_at, tail
from tools.errors import JobError
from tools.files import digest_bytes, locked, write_json_atomic
from tools.secret_text import find_secret

__all__ = ["JobRecord", "JobStatus", "cancel_job", "list_jobs", "read_job", "start_job", "wait_job"]

JobStatus = Literal["starting", "running", "succeeded", "failed", "cancelled", "lost"]

# One file a fact, each written once and by one writer: nothing is ever read half changed.
JOB_FILE: Final = "job.json"
PROCESS_FILE: Final = "process.json"
CANCEL_FILE: Final = "cancel.json"
EXIT_FILE: Final = "exit.json"
LOG_FILE: Final = "log.txt"
SUPERVISOR_LOCK: Final = ".supervisor.lock"

FOLDER_VARIABLE: Final = "BAKEHOUSE_JOB_FOLDER"
"""Tells a job's command its own folder, so that it can leave its result there."""

_LOG = logging.getLogger(__name__)
_ID: Final = re.compile(r"[0-9]{8}T[0-9]{12}Z-[a-z][a-z0-9-]{0,39}-[0-9a-f]{6}\Z")
_KIND: Final = re.compile(r"[a-z][a-z0-9-]{0,39}\Z")
_START_S: Final = 60.0
_ENDED: Final = ("succeeded", "failed", "cancelled", "lost")


@dataclass(frozen=True)
class JobRecord:
    """What is known of a job now."""

    id: str
    kind: str
    argv: tuple[str, ...]
    cwd: str
    created_at: str
    idempotency_key: str | None
    folder: Path
    status: JobStatus
    pid: int | None = None
    started_at: str | None = None
    ended_at: str | None = None
    exit_code: int | None = None
    """128 + n for a command that signal n ended."""
    error: str | None = None
    """Why it is failed or lost, where more than the exit code is known."""

    @property
    def log_path(self) -> Path:
        """The command's output."""
        return self.folder / LOG_FILE

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in _ENDED

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the command's output."""
        return tail(self.log_path, lines=lines)


def start_job(
    jobs_dir: str | Path,
    kind: str,
    argv: Sequence[str],
    *,
    cwd: str | Path,
    idempotency_key: str | None = None,
    env_extra: Mapping[str, str] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> JobRecord:
    """Start argv detached from this process and return its record, which is on disk by then.

    Args:
        jobs_dir: Holds one folder a job.
        kind: A short word, such as `train`; part of the id.
        argv: The command; no shell reads it. It is recorded, so it must hold no secret.
        cwd: Folder to start in.
        idempotency_key: A second start with the same key and command returns the first one's
            job, also after a crash in the middle of the first start.
        env_extra: Added to the environment of the command and recorded nowhere.
        now: Clock of the record.
    Raises:
        JobError: kind, argv or cwd is refused, or the job's supervisor did not start.
    """
    folder, command = Path(jobs_dir).resolve(), tuple(argv)
    _check(kind, command, Path(cwd))
    job: dict[str, Any] = {
        "version": 1,
        "kind": kind,
        "argv": list(command),
        "cwd": str(Path(cwd).resolve()),
        "idempotency_key": idempotency_key,
    }
    try:
        with locked(folder / ".lock"):
            job_id = _known_id(folder, job) or _record(folder, job, now())
            # Under the lock nobody else is starting a job: one without a process never started.
            if not _has_begun(folder / job_id):
                _start_supervisor(folder / job_id, env_extra)
    except OSError as err:
        raise JobError(f"the job cannot be recorded in {folder}: {err}") from err
    return read_job(folder, job_id)


def read_job(jobs_dir: str | Path, job_id: str) -> JobRecord:
    """Return the truth about a job, from its files and from the process table.

    Raises:
        JobError: the id is malformed, or no such job exists, or its record cannot be read.
    """
    folder = Path(jobs_dir).resolve() / _safe_id(job_id)
    job = _load(folder / JOB_FILE)
    if job is None:
        raise JobError(f"no job {job_id!r} in {jobs_dir}; `list_jobs` shows what there is")
    status, facts = _resolve(folder, job)
    try:
        return JobRecord(
            id=job_id,
            kind=str(job["kind"]),
            argv=tuple(str(part) for part in job["argv"]),
            cwd=str(job["cwd"]),
            created_at=str(job["created_at"]),
            idempotency_key=job["idempotency_key"],
            folder=folder,
            status=status,
            **facts,
        )
    except (KeyError, TypeError) as err:
        raise JobError(f"{folder / JOB_FILE} is no job record ({err!r}); it was not written here") from err


def list_jobs(
    jobs_dir: str | Path, *, read: Callable[[Path, str], JobRecord] = read_job
) -> tuple[JobRecord, ...]:
    """Return all jobs, oldest first. A folder that is no job is logged and left out.

    Args:
        jobs_dir: Holds one folder a job.
        read: How one is read; for a caller that remembers those that have ended.
    """
    folder = Path(jobs_dir)
    found: list[JobRecord] = []
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        if _ID.match(name):
            try:
                found.append(read(folder, name))
            except JobError as err:
                _LOG.warning("job left out: %s", err)
    return tuple(found)


def wait_job(
    jobs_dir: str | Path,
    job_id: str,
    *,
    timeout_s: float | None = None,
    poll_s: float = 0.2,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> JobRecord:
    """Return the job once it has ended, or as it is when timeout_s has passed."""
    deadline = None if timeout_s is None else clock() + timeout_s
    while True:
        record = read_job(jobs_dir, job_id)
        if record.ended or (deadline is not None and clock() >= deadline):
            return record
        sleep(poll_s if deadline is None else max(0.0, min(poll_s, deadline - clock())))


def cancel_job(
    jobs_dir: str | Path,
    job_id: str,
    *,
    grace_s: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> JobRecord:
    """Ask a job to end, kill what is left of it after grace_s, and return its record.

    What the command saved until then stays. A job that has ended is returned as it is.
    """
    record = read_job(jobs_dir, job_id)
    if record.ended:
        return record
    if not (record.folder / CANCEL_FILE).exists():
        write_json_atomic(record.folder / CANCEL_FILE, {"requested_at": _stamp(now())})
    family = _family(record.folder)
    _signal_group(record.folder, signal.SIGTERM)
    record = wait_job(jobs_dir, job_id, timeout_s=grace_s, sleep=sleep)
    _kill(family)
    if not record.ended:
        _kill(_family(record.folder))
        _signal_group(record.folder, signal.SIGKILL)
        record = wait_job(jobs_dir, job_id, timeout_s=10.0, sleep=sleep)
    return record


def _check(kind: str, argv: tuple[str, ...], cwd: Path) -> None:
    if not _KIND.match(kind):
        raise JobError(f"kind is {kind!r}; a short word of a-z, 0-9 and '-' is allowed")
    if not argv or not all(isinstance(part, str) and "\0" not in part for part in argv) or not argv[0]:
        raise JobError("argv must be a non-empty list of strings without NUL, the command first")
    if (place := find_secret(argv)) is not None:
        raise JobError(f"{place} looks like a secret; records keep argv, so hand it over in env_extra")
    if not cwd.is_dir():
        raise JobError(f"cwd is no folder: {cwd}")


def _safe_id(job_id: str) -> str:
    if not _ID.match(job_id):
        raise JobError(f"job id is {job_id[:80]!r}; an id looks like 20261120T044900000000Z-train-1a2b3c")
    return job_id


def _known_id(folder: Path, job: dict[str, Any]) -> str | None:
    """Return the job that this idempotency key stands for, if any."""
    key = job["idempotency_key"]
    if key is None:
        return None
    found = _load(_key_file(folder, key))
    known = None if found is None else _load(folder / _safe_id(str(found["id"])) / JOB_FILE)
    if found is None or known is None:
        return None
    if any(known.get(name) != job[name] for name in ("kind", "argv", "cwd")):
        raise JobError(
            f"idempotency key {key!r} already stands for job {found['id']} with another command; "
            "take a new key for a new command"
        )
    return str(found["id"])


def _record(folder: Path, job: dict[str, Any], moment: datetime) -> str:
    """Put the job on disk, then the key that leads to it, and return its id."""
    job_id = f"{moment.astimezone(UTC):%Y%m%dT%H%M%S%f}Z-{job['kind']}-{secrets.token_hex(3)}"
    starter = {"pid": os.getpid(), "started": started_at(os.getpid())}
    record = {**job, "id": job_id, "created_at": _stamp(moment), "starter": starter}
    write_json_atomic(folder / job_id / JOB_FILE, record)
    if job["idempotency_key"] is not None:
        write_json_atomic(_key_file(folder, job["idempotency_key"]), {"id": job_id})
    return job_id


def _key_file(folder: Path, key: str) -> Path:
    return folder / "keys" / f"{digest_bytes(key.encode('utf-8', 'surrogatepass'))}.json"


def _start_supervisor(job_folder: Path, env_extra: Mapping[str, str] | None) -> None:
    """Start the supervisor and wait until it has said which process the job is."""
    trouble = _launch(job_folder, env_extra)
    deadline = time.monotonic() + _START_S
    while trouble is None and not _has_begun(job_folder):
        if time.monotonic() > deadline:
            trouble = "it started, but recorded no process"
        time.sleep(0.01)
    if trouble is not None:
        # With this record the supervisor, should it still come, does not start the command.
        write_json_atomic(job_folder / EXIT_FILE, {"exit_code": None, "error": f"not started: {trouble}"})
        raise JobError(f"the supervisor of job {job_folder.name} did not start: {trouble}")


def _launch(job_folder: Path, env_extra: Mapping[str, str] | None) -> str | None:
    """Run the launcher, which forks the supervisor and ends; return what went wrong, if anything.

    The fork in between leaves nobody a zombie to reap.
    """
    launcher = subprocess.Popen(
        [sys.executable, "-P", "-m", "tools.jobs_runner", str(job_folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=child_environment(env_extra),
        start_new_session=True,
    )
    try:
        _, noise = launcher.communicate(timeout=_START_S)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.communicate()
        return f"it took more than {_START_S:.0f} s"
    return None if launcher.returncode == 0 else noise.decode("utf-8", "replace")[-2000:]


def _has_begun(job_folder: Path) -> bool:
    return (job_folder / PROCESS_FILE).exists() or (job_folder / EXIT_FILE).exists()


def _resolve(folder: Path, job: Mapping[str, Any]) -> tuple[JobStatus, dict[str, Any]]:
    process = _load(folder / PROCESS_FILE) or {}
    alive = is_alive(process.get("pid"), process.get("started")) or is_alive(
        process.get("supervisor_pid"), process.get("supervisor_started")
    )
    # The exit record is read after the look at the processes: one that ended in between has it.
    ended = _load(folder / EXIT_FILE)
    facts: dict[str, Any] = {"pid": process.get("pid"), "started_at": process.get("started_at")}
    if ended is not None:
        code = ended.get("exit_code")
        facts |= {"exit_code": code, "ended_at": ended.get("ended_at"), "error": ended.get("error")}
        if ended.get("cancelled"):
            return "cancelled", facts
        return ("succeeded" if code == 0 else "failed"), facts
    if alive:
        return "running", facts
    starter = job.get("starter") or {}
    if not process and (is_alive(starter.get("pid"), starter.get("started")) or _is_claimed(folder)):
        return "starting", facts
    if process and (folder / CANCEL_FILE).exists():
        return "cancelled", facts
    facts["error"] = "its process is gone and left no exit record: killed with its supervisor, or a reboot"
    if not process:
        facts["error"] = "it was recorded, but whoever did so ended before it started"
    return "lost", facts


def _is_claimed(folder: Path) -> bool:
    """Return whether a supervisor has the job in hand, though it has recorded no process yet."""
    try:
        with (folder / SUPERVISOR_LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _signal_group(folder: Path, number: signal.Signals) -> None:
    process = _load(folder / PROCESS_FILE) or {}
    if is_alive(process.get("pid"), process.get("started")):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(int(process["pid"]), number)


def _family(folder: Path) -> list[tuple[int, float | None]]:
    """Return the job's process and all below it, also those that left its group."""
    import psutil

    process = _load(folder / PROCESS_FILE) or {}
    if not is_alive(process.get("pid"), process.get("started")):
        return []
    with suppress(psutil.Error):
        root = psutil.Process(int(process["pid"]))
        return [(one.pid, started_at(one.pid)) for one in (root, *root.children(recursive=True))]
    return []


def _kill(family: list[tuple[int, float | None]]) -> None:
    for pid, started in family:
        if is_alive(pid, started):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _load(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
