"""Lanes by name: local, nemo, unsloth and ray."""

from __future__ import annotations

from tools.errors import TrainError
from tools.lanes.lane import Lane, LaunchPlan, Outcome
from tools.lanes.local import LocalLane, run_engine

__all__ = ["Lane", "LaunchPlan", "LocalLane", "Outcome", "get_lane", "run_engine"]


def get_lane(name: str) -> Lane:
    """Return the lane that a recipe's `backend` names.

    Raises:
        TrainError: no such lane, or one that this version does not run.
    """
    if name == "local":
        return LocalLane()
    if name == "ray":
        raise TrainError("backend 'ray' is not in this version; use 'local', 'nemo' or 'unsloth'")
    raise TrainError(f"backend is {name!r}; allowed: 'local', 'nemo', 'unsloth', 'ray'")
