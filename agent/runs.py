"""The run of a flywheel: so many iterations were asked for, however often it is killed on the way."""

from __future__ import annotations

from dataclasses import dataclass

from tools.journal import Journal

__all__ = ["FlywheelRun", "enter_run", "leave_run"]


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
