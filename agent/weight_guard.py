"""The guard on a trial's weights: whether it was trained at all."""

from __future__ import annotations

from agent.diagnostics.adapter_weights import AdapterWeights, read_adapter_weights
from agent.diagnostics.false_progress import find_untrained_checkpoint
from agent.records import TrialRecord
from tools.errors import WeightsError
from tools.verdict import Guard
from tools.workspace import Workspace

__all__ = ["guard_by_weights"]


def guard_by_weights(workspace: Workspace, incumbent: TrialRecord, trial: TrialRecord) -> Guard | None:
    """Return the guard of a trial's adapter against the incumbent's; None where it cannot be read.

    It fails where the adapter is as it was before the first step, or equals the incumbent's.
    """
    weights = _read(workspace, trial)
    if weights is None:
        return None
    found = find_untrained_checkpoint(trial.trial_id, weights, parent=_read(workspace, incumbent))
    detail = "its weights moved" if found is None else found.summary
    return Guard("trained", base=None, candidate=None, passed=found is None, detail=detail)


def _read(workspace: Workspace, trial: TrialRecord) -> AdapterWeights | None:
    if trial.adapter_dir is None:
        return None
    try:
        return read_adapter_weights(workspace.root / trial.adapter_dir)
    except WeightsError:
        # On a fresh clone the incumbent's adapter is gone; its scores are not.
        return None
