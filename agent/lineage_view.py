"""The lineage as the flywheel reads it: its best trial is the incumbent, not the luckiest score."""

from __future__ import annotations

from pathlib import Path

from agent.incumbent import INCUMBENT_NAME, load_incumbent
from tools.errors import TaskError
from tools.lineage import FailureLabel, LineageStore, Trial

__all__ = ["open_lineage"]


def open_lineage(folder: Path) -> LineageStore:
    """Return the store of a lineage folder, whose best trial is the first of the incumbent.

    Among many trials one that the verdict did not keep often has the highest score, by luck; and a
    kept one that a person took back keeps its row. The incumbent beside the rows knows both. Where
    that file is missing or damaged it is the last kept trial, else the first baseline.
    """
    store = LineageStore(folder, lower_is_better=False)
    return LineageStore(folder, lower_is_better=False, standing=_standing(folder, store.all_trials()))


def _standing(folder: Path, trials: list[Trial]) -> str | None:
    try:
        incumbent = load_incumbent(folder / INCUMBENT_NAME)
    except TaskError:
        incumbent = None
    if incumbent is not None:
        return incumbent.trial_id
    kept = [trial.exp_id for trial in trials if trial.status is FailureLabel.KEEP]
    baselines = [trial.exp_id for trial in trials if trial.status is FailureLabel.BASELINE]
    return next(iter((*reversed(kept), *baselines)), None)
