"""The node's side of a run on a Ray cluster: takes what is sent, trains, shows what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tools.child import Child, tail
from tools.errors import TrainError
from tools.files import write_json_atomic
from tools.lanes.ray.folders import sweep
from tools.lanes.ray.models import ModelCache
from tools.lanes.ray.outbox import Outbox, checkpoint_mark, checkpoint_name
from tools.lanes.ray.parcels import PIECE_BYTES, Parcel, Unpacking
from tools.lanes.ray.view import Facts, Growth, Mark, Seen, View
from tools.models import resolve_base_model
from tools.poll import BEST_TRACKER, METRICS, TRACKER, poll_run_progress, read_tracker
from tools.versions import library_versions

__all__ = ["INPUTS", "RESULT", "RUN", "NodeSide"]

INPUTS: Final = "inputs"
RUN: Final = "run"
RESULT: Final = "engine-result.json"

SAVE_S: Final = 20.0
"""What the worker gets to save when it is asked to stop; the driver then still has to fetch that."""
ABANDONED_S: Final = 300.0
"""Silence of the driver after which nobody waits for this run any more."""
_ORPHAN_GRACE_S: Final = 5.0


class NodeSide:
    """One run in a folder of its own, where the worker finds all paths relative to it.

    The worker ends with this process, and this process when its driver falls silent.
    """

    def __init__(self, root: Path, job: Path, lock: int, *, abandoned_s: float = ABANDONED_S) -> None:
        self._job, self._lock = job, lock
        self._models = ModelCache(root / "models")
        self._outbox = Outbox(job / RUN, job / "outbox")
        self._child: Child | None = None
        self._lifeline: int | None = None
        self._unpacking: tuple[str, str, Unpacking] | None = None
        self._stopping: threading.Thread | None = None
        self._left = threading.Event()
        self._called, self._is_busy = time.monotonic(), False
        (job / RUN).mkdir()
        sweep(root / "jobs.lock", root / "jobs", "job-")
        threading.Thread(target=self._listen, args=(abandoned_s,), daemon=True).start()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method by its name, on behalf of a driver that is known to live then."""
        self._is_busy = True
        try:
            return getattr(self, name)(*arguments)
        finally:
            self._called, self._is_busy = time.monotonic(), False

    def facts(self) -> Facts:
        """Say where this is and which libraries are there."""
        return Facts(socket.gethostname(), library_versions())

    def seek_model(self, digest: str) -> str:
        """Say whether a model is here; see `ModelCache.seek`."""
        return self._models.seek(digest)

    def open_parcel(self, kind: str, name: str, parcel: Parcel) -> None:
        """Take a parcel in: `model` under its digest, `checkpoint` under its step, or `inputs`, `state`."""
        if kind == "model":
            unpacking = self._models.begin(name, parcel)
        else:
            unpacking = Unpacking(self._job / "arriving", parcel)
        self._unpacking = (kind, name, unpacking)

    def add_piece(self, name: str, piece: bytes) -> None:
        """Append to a file of the parcel that is open."""
        assert self._unpacking is not None
        self._unpacking[2].add(name, piece)

    def close_parcel(self) -> Mark | None:
        """Put the parcel in its place, once it is whole; of a checkpoint return the mark."""
        assert self._unpacking is not None
        (kind, name, unpacking), self._unpacking = self._unpacking, None
        if kind == "model":
            self._models.keep(name, unpacking)
            return None
        folder = unpacking.finish()
        if kind == "checkpoint":
            target = self._job / RUN / checkpoint_name(int(name))
            os.rename(folder, target)
            return checkpoint_mark(target)
        target = self._job / (INPUTS if kind == "inputs" else RUN)
        target.mkdir(exist_ok=True)
        for path in folder.iterdir():
            os.replace(path, target / path.name)
        folder.rmdir()
        return None

    def start(self, spec: Mapping[str, Any], model: tuple[str, str] | None, cpus: int, gpus: float) -> None:
        """Start the worker.

        Args:
            spec: Its paths relative to the job's folder; `base_model` is the base's name.
            model: Digest and file of the base where it was sent, no file for a folder; None loads by name.
        Raises:
            ModelError: the base's name says nothing on this node.
        """
        if model is None:
            base = resolve_base_model(spec["base_model"])
        else:
            base = str(self._models.place(model[0]) / model[1])
        path = write_json_atomic(self._job / "engine-spec.json", dict(spec))
        env = {} if gpus else {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(cpus)}
        reader, self._lifeline = os.pipe()
        self._child = Child.start(
            (sys.executable, "-P", "-m", "tools.lanes.ray.engine", base, str(path)),
            log_path=self._log,
            env=env,
            cwd=self._job,
            stdin=reader,
            keep_fds=(self._lock,),
            grace_s=_ORPHAN_GRACE_S,
        )
        os.close(reader)

    def stop(self) -> None:
        """Ask the worker to save and end, and see to it that it does; does not wait for that."""
        if self._child is not None and self._stopping is None:
            self._stopping = threading.Thread(target=self._child.stop, args=(SAVE_S,), daemon=True)
            self._stopping.start()

    def look(self, seen: Seen) -> View:
        """Say how the run stands, and what the driver has not seen of it."""
        run_dir = self._job / RUN
        exit_code = None if self._child is None else self._child.poll()
        latest = read_tracker(run_dir / TRACKER)
        steps = [step for step in poll_run_progress(run_dir)[1] if latest is not None and step <= latest]
        marks: dict[int, Mark] = {}
        for step in steps:
            with contextlib.suppress(FileNotFoundError):
                marks[step] = checkpoint_mark(run_dir / checkpoint_name(step))
        return View(
            exit_code=exit_code,
            log=_read(self._log, seen.log_bytes),
            metrics=_grown(run_dir / METRICS, seen),
            latest=latest,
            best=read_tracker(run_dir / BEST_TRACKER),
            steps=tuple(marks),
            wanted={step: mark for step, mark in marks.items() if seen.checkpoints.get(step) != mark},
        )

    def hold(self, step: int, mark: Mark) -> Parcel | None:
        """Keep a checkpoint for reading; see `Outbox.hold`."""
        return self._outbox.hold(step, mark)

    def read(self, step: int, name: str, start: int) -> bytes:
        """Return the next piece of a file of a checkpoint that is kept."""
        return self._outbox.read(step, name, start)

    def drop(self, step: int) -> None:
        """Keep a checkpoint no longer."""
        self._outbox.drop(step)

    def result(self) -> dict[str, Any]:
        """Return what the worker wrote at its end.

        Raises:
            TrainError: it wrote nothing that can be read.
        """
        try:
            found = json.loads((self._job / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            words = tail(self._log)
            raise TrainError(f"the engine left no readable result, though it ended well\n{words}") from err
        assert isinstance(found, dict)
        return found

    def leave(self) -> None:
        """End what runs and remove the job's folder."""
        self._left.set()
        if self._child is not None:
            with self._child:
                pass
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        self._models.release()
        shutil.rmtree(self._job, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._job / "engine.log"

    def _listen(self, limit_s: float) -> None:
        """Leave once nobody has asked for so long; a driver's machine may vanish without a word."""
        while not self._left.wait(min(5.0, limit_s)):
            if not self._is_busy and time.monotonic() - self._called > limit_s:
                self.leave()
                os._exit(1)


def _read(path: Path, start: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(PIECE_BYTES)
    except FileNotFoundError:
        return b""


def _grown(path: Path, seen: Seen) -> Growth | None:
    """Return the whole lines that a file has more, or all of one that was written anew."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            is_known = status.st_ino == seen.metrics_file and status.st_size >= seen.metrics_bytes
            start = seen.metrics_bytes if is_known else 0
            file.seek(start)
            data = file.read(PIECE_BYTES)
    except FileNotFoundError:
        return None
    data = data[: data.rfind(b"\n") + 1]
    return None if is_known and not data else Growth(status.st_ino, start, data)
