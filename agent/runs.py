"""The run of a flywheel: so many iterations were asked for, however often it is killed on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from agent.records import IterationRecord
from tools.journal import Journal

__all__ = ["MOST_BROKEN", "FlywheelRun", "count_broken", "enter_run", "leave_run"]

MOST_BROKEN: Final = 2
"""Iterations in a row without a scored candidate, after which something else than the ideas is wrong."""


@dataclass(frozen=True)
class FlywheelRun:
    """A run, and how many of its iterations were finished before this process took it up."""

    run_id: str
    n_done: int


def enter_run(journal: Journal, iterations: int) -> FlywheelRun:
    """Go on with the run that was cut off, or begin one. Hold the workspace's lock first.

    The same number asked for again is the same run: without that, a flywheel of five that was
    killed in its third iteration would come to seven. Another number is another run.
    """
    for run_id in journal.open_runs():
        begun = journal.last("run_begin", run_id)
        if begun is not None and begun.data.get("iterations") == iterations:
            ended = [e for e in journal.events() if e.event == "iteration_end" and e.seq > begun.seq]
            journal.begin_run(run_id)
            return FlywheelRun(run_id, sum("abandoned" not in event.data for event in ended))
        journal.end_run(run_id, abandoned="another number of iterations was asked for")
    number = 1 + sum(event.event == "run_begin" for event in journal.events())
    run_id = f"r{number:04d}"
    journal.begin_run(run_id, iterations=iterations)
    return FlywheelRun(run_id, 0)


def leave_run(journal: Journal, run: FlywheelRun) -> None:
    """Record that the run came to its end, whatever stopped it."""
    journal.end_run(run.run_id)


def count_broken(journal: Journal, run: FlywheelRun) -> int:
    """Return how many of the run's last iterations, in a row, scored no candidate.

    Read from the journal, so that a storm is one however often the run was cut off in it.
    """
    begun = journal.last("run_begin", run.run_id)
    broken = 0
    for event in journal.events():
        if begun is None or event.seq < begun.seq or (event.event, event.step) != ("done", "decide"):
            continue
        try:
            record = IterationRecord.model_validate(event.data.get("result"))
        except ValidationError:
            # Another version's, or a re-run's: it says nothing of this run's candidates.
            continue
        tried = [trial for trial in record.own_trials if trial.parent_id]
        broken = 0 if any(trial.scored for trial in tried) else broken + 1
    return broken
