"""The heartbeat of a run: one sft-progress file, kept truthful until the run's end."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from tools.child import is_alive, started_at
from tools.files import write_json_atomic
from tools.recipe import Mode

__all__ = ["Heartbeat", "HeartbeatRecord", "close_orphan", "progress_dir", "read_heartbeat"]

PROGRESS_DIR_VARIABLE: Final = "FK_SFT_PROGRESS_DIR"
Status = Literal["starting", "running", "done", "failed"]

_LOG = logging.getLogger(__name__)
_LOST: Final = "the process that watched this run is gone; what is on disk is what it left"


def progress_dir(output_dir: str | Path) -> Path:
    """Return where heartbeats of output_dir lie: $FK_SFT_PROGRESS_DIR, else output_dir/progress."""
    chosen = os.environ.get(PROGRESS_DIR_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().resolve()
    return Path(output_dir).expanduser().resolve() / "progress"


class Heartbeat:
    """Writer of one run's sft-progress file.

    A write that fails is logged and never fails the run. The file also carries the pid of
    the watching process and its start, so that a reader can tell a run that goes on from
    one whose watcher was killed.

    Source: the fields and the file name are those of fieldkit.training.run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        backend: str,
        mode: Mode,
        run_dir: Path,
        max_iters: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._now = now
        began = now()
        self._fields: dict[str, Any] = {
            "version": 1,
            "kind": "sft-progress",
            "backend": backend,
            "mode": mode,
            "run_dir": str(run_dir),
            "run_label": f"{backend} LoRA SFT, {mode}: {run_dir.parent.name}",
            "max_iters": max_iters,
            "started_at": _stamp(began),
            "pid": os.getpid(),
            "pid_started": started_at(os.getpid()),
        }
        self._complained = False
        self._last: dict[str, Any] = {}
        self.path: Path | None = self._claim(folder, f"sft-progress-{mode}-{began:%Y%m%dT%H%M%S}")

    def _claim(self, folder: Path, stem: str) -> Path | None:
        """Take a file name that no other run has, also not one of the same second."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(1, 1000):
                path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
                try:
                    with path.open("x", encoding="utf-8") as file:
                        file.write(json.dumps(self._payload("starting", 0, ())))
                except FileExistsError:
                    continue
                return path
            raise OSError(f"999 heartbeats called {stem} exist")
        except OSError as err:
            self._complain(err)
            return None

    def running(self, latest_iter: int, iters: Sequence[int]) -> None:
        """Say that the trainer runs."""
        self._write("running", latest_iter, iters)

    def done(self, latest_iter: int, iters: Sequence[int], *, wall_s: float, **extra: Any) -> None:
        """Say that the run reached its end; the last word."""
        self._write("done", latest_iter, iters, wall_seconds=round(wall_s, 1), final=True, **extra)

    def failed(self, latest_iter: int, iters: Sequence[int], *, wall_s: float, error: str) -> None:
        """Say that the run failed or was ended, and why; the last word."""
        self._write("failed", latest_iter, iters, wall_seconds=round(wall_s, 1), final=True, error=error)

    def _payload(self, status: Status, latest: int, iters: Sequence[int], **extra: Any) -> dict[str, Any]:
        return {
            **self._fields,
            "status": status,
            "latest_iter": latest,
            "checkpoint_iters": list(iters),
            "updated_at": _stamp(self._now()),
            **extra,
        }

    def _write(self, status: Status, latest: int, iters: Sequence[int], **extra: Any) -> None:
        payload = self._payload(status, latest, iters, **extra)
        if self.path is None or payload == self._last:
            return
        self._last = payload
        try:
            write_json_atomic(self.path, payload, indent=None)
        except OSError as err:
            self._complain(err)

    def _complain(self, err: OSError) -> None:
        level = logging.DEBUG if self._complained else logging.WARNING
        self._complained = True
        _LOG.log(level, "the run goes on, but its heartbeat cannot be written: %s", err)


@dataclass(frozen=True)
class HeartbeatRecord:
    """A heartbeat as read back."""

    path: Path
    backend: str
    mode: str
    run_dir: str
    status: str
    latest_iter: int
    max_iters: int
    started_at: str
    updated_at: str
    error: str | None
    final: bool
    alive: bool | None
    """Whether the watching process lives; None when the file does not name it."""

    @property
    def state(self) -> str:
        """The status, with `lost` for a run whose watcher is gone without a last word."""
        return "lost" if not self.final and self.alive is False else self.status


def read_heartbeat(path: str | Path) -> HeartbeatRecord | None:
    """Return the heartbeat at path, or None when it is missing, torn or no heartbeat."""
    data = _load(Path(path))
    if data is None:
        return None
    pid, started = data.get("pid"), data.get("pid_started")
    known = isinstance(pid, int) and isinstance(started, int | float)
    return HeartbeatRecord(
        path=Path(path),
        backend=_text(data, "backend"),
        mode=_text(data, "mode"),
        run_dir=_text(data, "run_dir"),
        status=_text(data, "status"),
        latest_iter=_count(data, "latest_iter"),
        max_iters=_count(data, "max_iters"),
        started_at=_text(data, "started_at"),
        updated_at=_text(data, "updated_at"),
        error=_text(data, "error") or None,
        final=data.get("final") is True or data.get("status") in ("done", "failed"),
        alive=is_alive(pid, started) if known else None,
    )


def find_heartbeat(run_dir: str | Path, folder: Path) -> HeartbeatRecord | None:
    """Return the newest heartbeat in folder that speaks of run_dir."""
    wanted = str(Path(run_dir).resolve())
    try:
        found = sorted(folder.glob("sft-progress-*.json"), key=_modified, reverse=True)
    except OSError:
        return None
    for path in found:
        record = read_heartbeat(path)
        if record is not None and record.run_dir == wanted:
            return record
    return None


def close_orphan(path: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
    """Close the heartbeat of a run whose watcher died, unless it has had its last word."""
    data = _load(path)
    if data is None or data.get("final") is True:
        return
    try:
        write_json_atomic(
            path,
            {**data, "status": "failed", "error": _LOST, "final": True, "updated_at": _stamp(now())},
            indent=None,
        )
    except OSError as err:
        _LOG.warning("the heartbeat %s cannot be closed: %s", path, err)


def _load(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) and data.get("kind") == "sft-progress" else None


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return value if isinstance(value, str) else ""


def _count(data: Mapping[str, Any], key: str) -> int:
    value = data.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _modified(path: Path) -> tuple[int, str]:
    try:
        return (path.stat().st_mtime_ns, path.name)
    except OSError:
        return (0, path.name)


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
