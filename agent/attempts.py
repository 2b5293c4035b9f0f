"""Attempts: a worker that died is tried once more, and never twice, however often a run goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from agent.faults import Fault, classify, raise_if_machine, worth_retrying
from agent.records import TrialRecord
from tools.errors import TrainError
from tools.journal import Journal

__all__ = ["Retries", "run_trials", "told_end"]

RETRIED: Final = "retry"
_REASON_CHARACTERS: Final = 600

Run = Callable[[Sequence[TrialRecord]], list[TrialRecord]]


class Retries:
    """The retries that were taken, kept in the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def is_taken(self, key: str) -> bool:
        """Return whether the one retry of this work is gone."""
        return self._journal.last(RETRIED, key) is not None

    def take(self, key: str, reason: str) -> None:
        """Write down, before it begins, that work is tried once more."""
        self._journal.append(RETRIED, key, reason=reason)


def run_trials(
    trials: Sequence[TrialRecord], run: Run, retries: Retries | None, *, key: str
) -> list[TrialRecord]:
    """Run trials together; what a passing fault broke is tried once more, each by itself.

    By itself, because one trial that kills its worker must not take the others with it again.

    Args:
        run: Runs some of them in one worker.
        retries: What was tried again before; None lets a dead worker's error out.
        key: Names this work in the journal.
    Raises:
        DiskFullError, GpuLostError: the machine is at fault, not the trials.
        TrainError: the worker died and there is no book of retries.
    """
    if retries is None:
        return run(trials)
    if retries.is_taken(key):
        return [_run_alone(trial, run) for trial in trials]
    try:
        done = run(trials)
    except TrainError as err:
        raise_if_machine(err)
        if not worth_retrying(err):
            return [_give_up(trial, err) for trial in trials]
        retries.take(key, told_end(err))
        return [_run_alone(trial, run) for trial in trials]
    for trial in done:
        raise_if_machine(trial.error)
    broken = {trial.trial_id for trial in done if _may_pass(trial)}
    if not broken:
        return done
    retries.take(key, "; ".join(f"{trial.trial_id}: {trial.error}" for trial in done if _may_pass(trial)))
    begun = {trial.trial_id: trial for trial in trials}
    return [_run_alone(begun[trial.trial_id], run) if trial.trial_id in broken else trial for trial in done]


def told_end(err: TrainError) -> str:
    """Return a dead worker's fault and last words, without the paths of this machine."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    first = lines[0].partition("; log:")[0] if lines else "the worker died"
    last = f": {lines[-1]}" if len(lines) > 1 else ""
    return f"{classify(err)}: {first}{last}"[:_REASON_CHARACTERS]


def _run_alone(trial: TrialRecord, run: Run) -> TrialRecord:
    try:
        (done,) = run([trial])
    except TrainError as err:
        raise_if_machine(err)
        return _give_up(trial, err)
    raise_if_machine(done.error)
    return done


def _may_pass(trial: TrialRecord) -> bool:
    if trial.status != "failed" or trial.error is None:
        return False
    # One of several workers died, and took what it had in hand with it.
    died = trial.error.startswith("the worker died") and worth_retrying(trial.error)
    return died or classify(trial.error) is Fault.TRANSIENT


def _give_up(trial: TrialRecord, err: TrainError) -> TrialRecord:
    return trial.model_copy(update={"status": "failed", "error": told_end(err)})
