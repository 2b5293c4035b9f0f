"""What a run's folder says about the run, read without asking the trainer."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from tools.heartbeat import HeartbeatRecord, find_heartbeat, progress_dir

__all__ = ["RunProgress", "poll_run_progress", "read_progress"]

TRACKER: Final = "latest_checkpointed_iteration.txt"
BEST_TRACKER: Final = "best_checkpointed_iteration.txt"
METRICS: Final = "metrics.jsonl"

_NUMBER: Final = re.compile(r"[0-9]{1,18}\Z")
_ITERATION: Final = re.compile(r"iter_([0-9]{7,18})\Z")
_HF_CHECKPOINT: Final = re.compile(r"checkpoint-([0-9]{1,18})\Z")
_TAIL_BYTES: Final = 65536


def poll_run_progress(run_dir: str | Path) -> tuple[int, list[int]]:
    """Return the last checkpointed iteration and all iterations on disk, ascending.

    `(0, [])` is the answer for a folder that does not exist or holds no checkpoint yet. The
    first number comes from the tracker file alone, 0 when it is missing or no number; it is
    what to trust, since a trainer writes it after the checkpoint. Folders `checkpoint-N` of
    a Hugging Face trainer count once their trainer_state.json is there, and where no
    tracker exists the last of them is the latest.

    Source: fieldkit.training.poll_run_progress.
    """
    folder = Path(run_dir)
    ours, foreign = set[int](), set[int]()
    for entry in _folders(folder):
        if match := _ITERATION.match(entry.name):
            ours.add(int(match[1]))
        elif (match := _HF_CHECKPOINT.match(entry.name)) and Path(entry.path, "trainer_state.json").is_file():
            foreign.add(int(match[1]))
    latest = read_tracker(folder / TRACKER)
    if latest is None:
        latest = max(foreign, default=0)
    return latest, sorted(ours | foreign)


@dataclass(frozen=True)
class RunProgress:
    """All that the disk says about one run. What is not known is None."""

    run_dir: Path
    latest_iter: int
    iters: tuple[int, ...]
    best_iter: int | None
    step: int | None
    """Last optimizer step with a metrics line; ahead of latest_iter between checkpoints."""
    loss: float | None
    learning_rate: float | None
    tokens_per_s: float | None
    eval_score: float | None
    """Score of the last mid-run evaluation."""
    heartbeat: HeartbeatRecord | None

    @property
    def alive(self) -> bool | None:
        """Whether the watching process lives; None without a heartbeat that names it."""
        return None if self.heartbeat is None else self.heartbeat.alive


def read_progress(run_dir: str | Path, *, progress_folder: str | Path | None = None) -> RunProgress:
    """Return what run_dir and its heartbeat say.

    Args:
        run_dir: Folder of one run.
        progress_folder: Where heartbeats lie; by default as `sft_progress_dir` says for a
            run folder directly below its output_dir.
    """
    folder = Path(run_dir).expanduser().resolve()
    latest, iters = poll_run_progress(folder)
    beats = progress_dir(folder.parent) if progress_folder is None else Path(progress_folder)
    metrics = _last_metrics(folder / METRICS)
    return RunProgress(
        run_dir=folder,
        latest_iter=latest,
        iters=tuple(iters),
        best_iter=read_tracker(folder / BEST_TRACKER),
        step=None if metrics.step is None else int(metrics.step),
        loss=metrics.loss,
        learning_rate=metrics.lr,
        tokens_per_s=metrics.tokens_per_s,
        eval_score=metrics.eval_score,
        heartbeat=find_heartbeat(folder, beats),
    )


def read_tracker(path: Path) -> int | None:
    """Return the iteration that a tracker file names, or None when it is missing or no number."""
    try:
        with path.open("rb") as file:
            text = file.read(64).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if _NUMBER.match(text) else None


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    found: list[os.DirEntry[str]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                # A checkpoint may be rotated away between the listing and the look.
                try:
                    if entry.is_dir():
                        found.append(entry)
                except OSError:
                    continue
    except OSError:
        return []
    return found


class _Metrics(NamedTuple):
    """The last number of each kind."""

    step: float | None = None
    loss: float | None = None
    lr: float | None = None
    tokens_per_s: float | None = None
    eval_score: float | None = None


def _last_metrics(path: Path) -> _Metrics:
    try:
        found = path.stat()
    except OSError:
        return _Metrics()
    return _parse_end(path, (found.st_ino, found.st_size, found.st_mtime_ns))


# Whoever watches a run asks many times between two of its steps, and the end of the file is long.
@lru_cache(maxsize=256)
def _parse_end(path: Path, _: tuple[int, int, int]) -> _Metrics:
    """Read the lines at the end of a metrics file; a torn first or last line is left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            block = file.read()
    except OSError:
        return _Metrics()
    numbers: dict[str, float] = {}
    for raw in reversed(block.split(b"\n")):
        if len(numbers) == len(_Metrics._fields):
            break
        try:
            line = json.loads(raw)
            if isinstance(line, dict):
                _take_numbers(line, numbers)
        except (ValueError, RecursionError, OverflowError):
            continue
    return _Metrics(**numbers)


def _take_numbers(line: dict[str, Any], numbers: dict[str, float]) -> None:
    """Add a line's finite numbers of the kinds that are not there yet."""
    for key in _Metrics._fields:
        value = line.get(key)
        if (
            key not in numbers
            and isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
        ):
            numbers[key] = float(value)
