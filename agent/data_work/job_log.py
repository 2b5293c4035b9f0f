"""The log of one data job: what was asked and what came, on disk as it comes, resumed after a kill."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agent.teachers.meter import Spent
from tools.clock import Clock
from tools.errors import LockHeldError
from tools.files import append_line, digest_json, read_jsonl
from tools.leakage import Leak
from tools.lock import hold_lock
from tools.workspace import Workspace

__all__ = ["JobLog", "data_work_dir", "hold_data_work", "open_job"]

_KEPT: Final = ("job", "debit", "settled", "batch", "written")


class JobLog:
    """Append-only, one JSON object a line; a torn line costs itself alone."""

    def __init__(self, path: Path, *, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        rows = read_jsonl(path).rows
        self._lines = [row for row in rows if isinstance(row, dict) and row.get("kind") in _KEPT]

    @property
    def job_id(self) -> str:
        return self.path.stem

    @property
    def identity(self) -> str | None:
        """Digest of what the job was asked to do."""
        return next((line.get("identity") for line in self._of("job")), None)

    @property
    def started_at(self) -> str:
        return next((str(line.get("at")) for line in self._of("job")), "")

    @property
    def is_written(self) -> bool:
        """Whether what the job made was put where it belongs."""
        return any(self._of("written"))

    @property
    def batches(self) -> dict[int, dict[str, Any]]:
        """What came of each finished batch."""
        return {int(line["batch"]): line for line in self._of("batch")}

    @property
    def spent(self) -> Spent:
        """Calls and tokens; a call that never came back counts with its worst case."""
        debits = [int(line["tokens"]) for line in self._of("debit")]
        settled = sum(int(line["tokens"]) - int(line["worst"]) for line in self._of("settled"))
        return Spent(len(debits), sum(debits) + settled)

    def begin(self, identity: str, request: Mapping[str, Any]) -> None:
        """Write the first line."""
        self._append("job", identity=identity, request=dict(request))

    def debit(self, worst: int) -> None:
        """Write that a call is about to be made."""
        self._append("debit", tokens=worst)

    def settle(self, worst: int, tokens: int) -> None:
        """Write what a call took."""
        self._append("settled", worst=worst, tokens=tokens)

    def finish_batch(self, batch: int, **data: Any) -> None:
        """Write what came of a batch, whole or not at all."""
        self._append("batch", batch=batch, **data)

    def note(self, kind: str, **data: Any) -> None:
        """Write a line that nobody resumes from, such as what a row was before it was mended."""
        self._append(kind, **data)

    def mark_written(self, **data: Any) -> None:
        """Write that the job's work is where it belongs: the next one like it begins anew."""
        self._append("written", **data)

    def keep_leaks(self, leaks: Sequence[Leak]) -> None:
        """Keep the pairs of refused rows beside the log, for a person on this machine alone."""
        if not leaks:
            return
        path = leaks_path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Judged text: nobody else on the machine needs to read it.
        os.close(os.open(path, os.O_CREAT | os.O_APPEND, 0o600))
        for leak in leaks:
            append_line(path, json.dumps({"at": self._clock(), **vars(leak)}, allow_nan=False))

    def _append(self, kind: str, **data: Any) -> None:
        line = {"kind": kind, "at": self._clock(), **data}
        append_line(self.path, json.dumps(line, allow_nan=False))
        self._lines.append(json.loads(json.dumps(line)))

    def _of(self, kind: str) -> Iterator[dict[str, Any]]:
        return (line for line in list(self._lines) if line["kind"] == kind)


def open_job(folder: Path, command: str, request: Mapping[str, Any], *, clock: Clock) -> JobLog:
    """Return the log of an unfinished job that was asked the same, or of a new one.

    Args:
        request: What makes two jobs the same one: what is asked, of whom, with which words.
    """
    identity = digest_json({"command": command, **request})
    name = f"{command}-{identity[:10]}"
    found = sorted(folder.glob(f"*-{name}.jsonl"))
    for path in reversed(found):
        log = JobLog(path, clock=clock)
        if log.identity == identity and not log.is_written:
            return log
    stamp = clock().replace("-", "").replace(":", "")
    # Two jobs of one second, or a clock that went back, must not share a file.
    number = len(found) + 1
    log = JobLog(folder / f"{stamp}-{number:03d}-{name}.jsonl", clock=clock)
    log.begin(identity, request)
    return log


def data_work_dir(workspace: Workspace) -> Path:
    """Return the folder of the jobs' logs."""
    return workspace.state_dir / "data_work"


def leaks_path(log: Path) -> Path:
    """Return where the pairs of a job's refused rows are kept."""
    return log.with_suffix(".leaks.jsonl")


@contextlib.contextmanager
def hold_data_work(workspace: Workspace) -> Iterator[None]:
    """Hold the workspace's data work: one job at a time.

    Raises:
        LockHeldError: another job runs.
    """
    held = contextlib.ExitStack()
    try:
        held.enter_context(hold_lock(data_work_dir(workspace) / "lock", timeout_s=0.2))
    except LockHeldError as err:
        raise LockHeldError(
            f"another data command runs on {workspace.root}; wait for it to end, or stop it"
        ) from err
    with held:
        yield
