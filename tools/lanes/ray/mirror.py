"""The run folder here, kept like the one on the node, in the order in which a trainer would write it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

from tools.files import write_bytes_atomic, write_text_atomic
from tools.lanes.ray.outbox import checkpoint_name
from tools.lanes.ray.parcels import Parcel, Unpacking, pieces
from tools.lanes.ray.view import Growth, Mark, Seen, View
from tools.poll import BEST_TRACKER, METRICS, TRACKER, poll_run_progress, read_tracker

__all__ = ["Calls", "Mirror", "send_parcel"]

_PARTIAL: Final = ".partial-"
_ASIDE: Final = ".aside-"
_STATE: Final = (METRICS, TRACKER, BEST_TRACKER)


class Calls(Protocol):
    """The way to the methods of `NodeSide`, wherever it is."""

    def call(self, name: str, *arguments: Any) -> Any:
        """Call one and return what it returns."""
        ...


def send_parcel(
    node: Calls, kind: str, name: str, files: Mapping[str, Path], parcel: Parcel | None = None
) -> Mark | None:
    """Send files, each under its name, and return what the node says of them."""
    parcel = Parcel.of(files) if parcel is None else parcel
    node.call("open_parcel", kind, name, parcel)
    for file in parcel.files:
        for piece in pieces(files[file.name]):
            node.call("add_piece", file.name, piece)
    mark: Mark | None = node.call("close_parcel")
    return mark


class Mirror:
    """One run folder and its other half on a node."""

    def __init__(self, run_dir: Path, node: Calls) -> None:
        self._run_dir = run_dir
        self._node = node
        self._seen = Seen()

    def send_state(self, most_recent_k: int) -> int | None:
        """Send the checkpoints of a run that was cut short; return the step from which it goes on."""
        self._tidy()
        latest = read_tracker(self._run_dir / TRACKER)
        if latest is None:
            return None
        steps = poll_run_progress(self._run_dir)[1]
        best = read_tracker(self._run_dir / BEST_TRACKER)
        # What the tracker does not vouch for is no checkpoint; the run will come to that step again.
        for step in [step for step in steps if step > latest]:
            shutil.rmtree(self._folder(step))
        whole = [step for step in steps if step <= latest]
        kept = set(whole[-max(1, most_recent_k) :]) | {number for number in whole if number == best}
        for step in sorted(kept):
            files = {path.name: path for path in self._folder(step).iterdir() if path.is_file()}
            mark = send_parcel(self._node, "checkpoint", str(step), files)
            assert mark is not None
            self._seen = replace(self._seen, checkpoints={**self._seen.checkpoints, step: mark})
        state = {name: self._run_dir / name for name in _STATE if (self._run_dir / name).is_file()}
        send_parcel(self._node, "state", "", state)
        return latest

    def update(self) -> View:
        """Look at the node once and bring over what is new there."""
        view: View = self._node.call("look", self._seen)
        if view.log:
            sys.stderr.buffer.write(view.log)
            sys.stderr.buffer.flush()
            self._seen = replace(self._seen, log_bytes=self._seen.log_bytes + len(view.log))
        if view.metrics is not None:
            self._take_metrics(view.metrics)
        # The last one first: it is what a run goes on from.
        for step in sorted(view.wanted, reverse=True):
            self._fetch(step, view.wanted[step])
            self._name(view)
        self._name(view)
        self._drop_rotated(view)
        return view

    def _take_metrics(self, growth: Growth) -> None:
        path = self._run_dir / METRICS
        if growth.start == 0:
            write_bytes_atomic(path, growth.data)
        else:
            with path.open("ab") as file:
                file.write(growth.data)
        end = growth.start + len(growth.data)
        self._seen = replace(self._seen, metrics_file=growth.file, metrics_bytes=end)

    def _fetch(self, step: int, mark: Mark) -> None:
        parcel: Parcel | None = self._node.call("hold", step, mark)
        if parcel is None:
            # Rotated away, or replaced: the next look says which.
            return
        unpacking = Unpacking(self._run_dir / f"{_PARTIAL}{checkpoint_name(step)}", parcel)
        for file in parcel.files:
            start = 0
            while start < file.size_bytes and (piece := self._node.call("read", step, file.name, start)):
                unpacking.add(file.name, piece)
                start += len(piece)
        arrived = unpacking.finish()
        self._node.call("drop", step)
        self._place(arrived, self._folder(step))
        self._seen = replace(self._seen, checkpoints={**self._seen.checkpoints, step: mark})

    def _place(self, arrived: Path, target: Path) -> None:
        aside = target.with_name(f"{_ASIDE}{target.name}")
        if target.exists():
            os.rename(target, aside)
        os.rename(arrived, target)
        shutil.rmtree(aside, ignore_errors=True)
        descriptor = os.open(self._run_dir, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _name(self, view: View) -> None:
        """Let the trackers name what they name on the node, once it is here."""
        for name, step in ((TRACKER, view.latest), (BEST_TRACKER, view.best)):
            path = self._run_dir / name
            if step is not None and step in self._seen.checkpoints and read_tracker(path) != step:
                write_text_atomic(path, f"{step}\n")

    def _drop_rotated(self, view: View) -> None:
        """Remove the checkpoints that the trainer removed, but for those that are named here."""
        named = {read_tracker(self._run_dir / name) for name in (TRACKER, BEST_TRACKER)}
        gone = set(self._seen.checkpoints) - set(view.steps) - named
        for step in gone:
            shutil.rmtree(self._folder(step), ignore_errors=True)
        kept = {step: mark for step, mark in self._seen.checkpoints.items() if step not in gone}
        self._seen = replace(self._seen, checkpoints=kept)

    def _tidy(self) -> None:
        """Put right what a kill left: a folder that was to be replaced, and parts of others."""
        for aside in self._run_dir.glob(f"{_ASIDE}*"):
            target = aside.with_name(aside.name.removeprefix(_ASIDE))
            if target.exists():
                shutil.rmtree(aside)
            else:
                os.rename(aside, target)
        for partial in self._run_dir.glob(f"{_PARTIAL}*"):
            shutil.rmtree(partial)

    def _folder(self, step: int) -> Path:
        return self._run_dir / checkpoint_name(step)
