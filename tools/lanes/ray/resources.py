"""What a trial asks of a Ray cluster, and whether any of its nodes has that."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tools.errors import TrainError

__all__ = ["CPUS", "GPUS", "NodeRoom", "Resources", "asked", "cluster_rooms", "choose"]

GPUS: Final = "BAKEHOUSE_RAY_GPUS"
"""GPUs of a trial: 1, a share of one such as 0.5, or 0; without it 1 where the cluster has any."""
CPUS: Final = "BAKEHOUSE_RAY_CPUS"
"""CPUs of a trial; without it 1 beside a GPU, else as many as the largest node has."""

_MOST_CPUS: Final = 4096


@dataclass(frozen=True)
class Resources:
    """What one trial gets. As a wish, None leaves the choice to what the cluster has."""

    cpus: int | None
    gpus: float | None


@dataclass(frozen=True)
class NodeRoom:
    """What a node of the cluster has in all, taken or not."""

    name: str
    cpus: float
    gpus: float


def asked(environ: Mapping[str, str] = os.environ) -> Resources:
    """Return what the environment asks for.

    Raises:
        TrainError: a variable is no such number.
    """
    cpus, gpus = environ.get(CPUS, "").strip(), environ.get(GPUS, "").strip()
    n_cpus, n_gpus = _number(cpus), _number(gpus)
    if cpus and not (n_cpus is not None and n_cpus.is_integer() and 1 <= n_cpus <= _MOST_CPUS):
        raise TrainError(f"{CPUS} is {cpus!r}; a whole number from 1 to {_MOST_CPUS} is needed")
    if gpus and not (n_gpus is not None and 0 <= n_gpus <= 1):
        raise TrainError(f"{GPUS} is {gpus!r}; 1, a share of one GPU such as 0.5, or 0 is needed")
    return Resources(None if n_cpus is None else int(n_cpus), n_gpus)


def cluster_rooms(nodes: Sequence[Mapping[str, Any]]) -> tuple[NodeRoom, ...]:
    """Return the living nodes of what `ray.nodes()` says."""
    return tuple(
        NodeRoom(
            f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
            float(node["Resources"].get("CPU", 0)),
            float(node["Resources"].get("GPU", 0)),
        )
        for node in nodes
        if node["Alive"]
    )


def choose(wish: Resources, rooms: Sequence[NodeRoom]) -> Resources:
    """Return what to ask Ray for.

    Raises:
        TrainError: no node has as much, however long one would wait.
    """
    gpus = wish.gpus
    if gpus is None:
        gpus = float(any(room.gpus >= 1 for room in rooms))
    fitting = [room for room in rooms if room.gpus >= gpus]
    cpus = wish.cpus
    if cpus is None:
        cpus = 1 if gpus else max(1, int(max((room.cpus for room in fitting), default=1)))
    if not any(room.cpus >= cpus for room in fitting):
        there = "; ".join(f"{room.name}: {room.cpus:g} CPUs, {room.gpus:g} GPUs" for room in rooms)
        raise TrainError(
            f"a trial asks for {cpus} CPUs and {gpus:g} GPUs on one node, which the cluster does not have "
            f"({there or 'no nodes'}); change {CPUS} and {GPUS}, or add a node"
        )
    return Resources(cpus, gpus)


def _number(text: str) -> float | None:
    try:
        value = float(text) if text.isascii() else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
