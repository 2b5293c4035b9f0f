"""The time that runs took against the work that they had."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

from agent.diagnostics.finding import Finding
from agent.planners.candidates import relative_cost
from agent.records import TrialRecord

__all__ = ["find_implausibly_fast"]

_SHARE: Final = 0.2
_LEAST_COHORT: Final = 3


def find_implausibly_fast(trials: Sequence[TrialRecord], *, n_train_rows: int = 0) -> tuple[Finding, ...]:
    """Return a finding for each finished run that took under a fifth of its cohort's time for its work.

    A run of half the passes may take half the time; runs that stopped early are left out, and so
    is a cohort of fewer than three.
    """
    done = [trial for trial in trials if trial.status == "done" and trial.train_s > 0]
    if len(done) < _LEAST_COHORT:
        return ()
    first = done[0].train_recipe
    pace = {
        trial.trial_id: trial.train_s / relative_cost(trial.train_recipe, first, n_train_rows)
        for trial in done
    }
    found = []
    for trial in done:
        others = median(pace[other.trial_id] for other in done if other is not trial)
        if pace[trial.trial_id] < _SHARE * others:
            found.append(
                Finding(
                    "implausibly_fast",
                    f"{trial.trial_id} took {trial.train_s:.0f} s, {pace[trial.trial_id] / others:.0%} of "
                    "what its cohort takes for such work",
                    "See in its log whether it trained at all",
                    (trial.trial_id,),
                )
            )
    return tuple(found)
