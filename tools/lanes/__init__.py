"""Lanes by name: local, nemo, unsloth and ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tools.errors import TrainError
from tools.lanes.lane import Lane, LaunchPlan, Outcome
from tools.lanes.local import LocalLane, run_engine
from tools.lanes.nemo import NemoLane
from tools.lanes.ray.lane import RayLane
from tools.lanes.replicas import ReplicatedEngine
from tools.lanes.resident import ResidentEngine
from tools.lanes.unsloth import UnslothLane

__all__ = [
    "Lane",
    "LaunchPlan",
    "LocalLane",
    "NemoLane",
    "Outcome",
    "RayLane",
    "ReplicatedEngine",
    "ResidentEngine",
    "UnslothLane",
    "get_lane",
    "run_engine",
]

_LANES: Final[dict[str, Callable[[], Lane]]] = {
    "local": LocalLane,
    "nemo": NemoLane,
    "ray": RayLane,
    "unsloth": UnslothLane,
}


def get_lane(name: str) -> Lane:
    """Return the lane that a recipe's `backend` names.

    Raises:
        TrainError: no such lane.
    """
    if name not in _LANES:
        raise TrainError(f"backend is {name!r}; allowed: {sorted(_LANES)}")
    return _LANES[name]()
