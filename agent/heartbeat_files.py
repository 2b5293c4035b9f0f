"""The heartbeat: two files that tell a watcher how a flywheel is doing, without asking it."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

from agent.incumbent import Incumbent
from agent.plan import BudgetLeft
from agent.progress import Event
from agent.records import CandidateRecord, IterationRecord
from tools.clock import Clock
from tools.files import append_line, read_jsonl, write_json_atomic

__all__ = ["EXPERIMENTS_FILE", "HEARTBEAT_FILE", "FlywheelHeartbeat", "keep_heartbeat"]

logger = logging.getLogger(__name__)

HEARTBEAT_FILE: Final = "flywheel_heartbeat.json"
EXPERIMENTS_FILE: Final = "experiments.jsonl"
_ERROR_CHARACTERS: Final = 2000

Status = Literal["running", "completed", "error"]


class FlywheelHeartbeat:
    """Writes both files below a workspace's state folder; a run goes on when that fails.

    The heartbeat holds `iteration`, `status` (running, completed or error), `accuracy` (the
    incumbent's selection score), `timestamp`, `budget_left` once something was spent, and `error`
    where there is one. A run that was killed leaves "running" with the time of its last event.
    """

    def __init__(self, state_dir: Path, clock: Clock) -> None:
        self._state_dir = state_dir
        self._clock = clock
        self._iteration: int | None = None
        self._accuracy: float | None = None
        self._left: BudgetLeft | None = None

    def running(self, iteration_id: str, accuracy: float | None) -> None:
        """Say that an iteration runs, and what it has to beat."""
        self._iteration, self._accuracy = int(iteration_id[1:]), accuracy
        self._beat("running")

    def watched(self, notify: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return notify with a beat before each event."""

        def beat_and_notify(event: Event) -> None:
            self._left = event.left or self._left
            self._beat("running")
            notify(event)

        return beat_and_notify

    def finished(self, record: IterationRecord, incumbent: Incumbent) -> None:
        """Append an iteration to the log of experiments, unless it is there."""
        self._accuracy = incumbent.selection
        path = self._state_dir / EXPERIMENTS_FILE
        row = {**describe_experiment(record, incumbent), "timestamp": self._clock()}
        with self._tolerant():
            if record.iteration_id not in {_iteration_of(found) for found in read_jsonl(path).rows}:
                append_line(path, json.dumps(row, ensure_ascii=False, allow_nan=False))
        self._beat("running")

    def end(self, error: str | None = None) -> None:
        """Say that the run is over, with the reason where it could not go on."""
        self._beat("completed" if error is None else "error", error)

    def _beat(self, status: Status, error: str | None = None) -> None:
        beat: dict[str, Any] = {
            "iteration": self._iteration,
            "status": status,
            "accuracy": self._accuracy,
            "timestamp": self._clock(),
        }
        if self._left is not None:
            beat["budget_left"] = asdict(self._left)
        if error is not None:
            beat["error"] = error[:_ERROR_CHARACTERS]
        with self._tolerant():
            write_json_atomic(self._state_dir / HEARTBEAT_FILE, beat)

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            logger.warning("the flywheel goes on, but its heartbeat cannot be written: %s", err)


@contextlib.contextmanager
def keep_heartbeat(state_dir: Path, clock: Clock) -> Iterator[FlywheelHeartbeat]:
    """Yield the heartbeat of a run; whatever ends the block with an error is its last word."""
    heartbeat = FlywheelHeartbeat(state_dir, clock)
    try:
        yield heartbeat
    except BaseException as err:
        heartbeat.end(f"{type(err).__name__}: {err}".removesuffix(": "))
        raise


def describe_experiment(record: IterationRecord, incumbent: Incumbent) -> dict[str, Any]:
    """Return an iteration as a row of the log: its number, the score after it, what was tried."""
    return {
        "iteration": int(record.iteration_id[1:]),
        "accuracy": incumbent.selection,
        "hypothesis": record.hypothesis,
        "iteration_id": record.iteration_id,
        "planner": record.planner,
        "promoted": record.promoted,
        "decision": record.decision,
        "candidates": [_describe_candidate(record, candidate) for candidate in record.candidates],
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "wall_s": record.wall_s,
        "budget": None if record.budget is None else record.budget.model_dump(mode="json"),
    }


def _describe_candidate(record: IterationRecord, candidate: CandidateRecord) -> dict[str, Any]:
    ruling = record.ruling(candidate.candidate_id)
    return {
        "candidate": candidate.candidate_id,
        "changes": list(candidate.changes),
        "verdict": "refused" if ruling is None else ruling.verdict,
        "accuracy": None if ruling is None else ruling.candidate_mean,
        "gain": None if ruling is None else ruling.gain,
        "low": None if ruling is None else ruling.low,
        "high": None if ruling is None else ruling.high,
    }


def _iteration_of(row: Any) -> Any:
    return row.get("iteration_id") if isinstance(row, dict) else None
