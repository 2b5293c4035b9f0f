"""The supervisor of one detached job: `python -P -m tools.jobs_runner JOB_FOLDER`.

It forks away from its starter, starts the recorded command in a group of its own, writes
down which process that is and, whatever becomes of the starter, how it ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tools.child import started_at
from tools.files import write_json_atomic
from tools.jobs import (
    CANCEL_FILE,
    EXIT_FILE,
    FOLDER_VARIABLE,
    JOB_FILE,
    LOG_FILE,
    PROCESS_FILE,
    SUPERVISOR_LOCK,
)

_WRITE_TRIES: Final = 120


def main(argv: list[str]) -> int:
    """Fork the supervisor of the job in argv[0] and return at once."""
    folder = Path(argv[0])
    job = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
    # Opened before the fork: what fails here, the starter hears of.
    log = os.open(folder / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    claim = os.open(folder / SUPERVISOR_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    if (folder / PROCESS_FILE).exists() or (folder / EXIT_FILE).exists() or os.fork() > 0:
        return 0
    for stream in (1, 2):
        os.dup2(log, stream)
    if (folder / CANCEL_FILE).exists():
        _record_end(folder, None, "cancelled before it started")
    else:
        _supervise(folder, job)
    return 0


def _supervise(folder: Path, job: Mapping[str, Any]) -> None:
    # A handler and not SIG_IGN, which the command would inherit.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _outlive)
    try:
        command = subprocess.Popen(
            job["argv"],
            cwd=job["cwd"],
            stdin=subprocess.DEVNULL,
            close_fds=True,
            process_group=0,
            env={**os.environ, FOLDER_VARIABLE: str(folder)},
        )
    except OSError as err:
        _record_end(folder, 127, f"cannot start {job['argv'][0]!r}: {err}")
        return
    process = {
        "pid": command.pid,
        "started": started_at(command.pid),
        "started_at": _now(),
        "supervisor_pid": os.getpid(),
        "supervisor_started": started_at(os.getpid()),
    }
    try:
        write_json_atomic(folder / PROCESS_FILE, process)
    except OSError as err:
        # A job that nobody can find or cancel must not go on.
        os.killpg(command.pid, signal.SIGKILL)
        command.wait()
        _record_end(folder, 1, f"its process could not be recorded: {err}")
        return
    code = command.wait()
    _record_end(folder, 128 - code if code < 0 else code, None)


def _record_end(folder: Path, code: int | None, error: str | None) -> None:
    """Write the exit record; a full disk gets two minutes to be emptied."""
    record = {
        "exit_code": code,
        "ended_at": _now(),
        "cancelled": (folder / CANCEL_FILE).exists(),
        "error": error,
    }
    for _ in range(_WRITE_TRIES):
        try:
            write_json_atomic(folder / EXIT_FILE, record)
        except OSError as err:
            sys.stderr.write(f"the exit record cannot be written, trying again: {err}\n")
            time.sleep(1.0)
        else:
            return


def _outlive(*_: object) -> None:
    """Stay: the command ends first, and then its end is recorded."""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
