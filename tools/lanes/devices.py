"""The devices of this machine, each of which a worker of its own can have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tools.errors import TrainError
from tools.hardware.machine import visible_gpus

__all__ = ["SETTING", "WorkerPlace", "worker_places"]

SETTING: Final = "BAKEHOUSE_DEVICES"
"""How many workers run side by side; without it one on each visible GPU, or one on the CPU."""

_MOST: Final = 64


@dataclass(frozen=True)
class WorkerPlace:
    """Where one worker runs."""

    name: str
    environment: Mapping[str, str]
    threads: int | None = None
    """What a worker on the CPU may take where a spec does not say; None leaves it to torch."""


def worker_places(environ: Mapping[str, str] = os.environ) -> tuple[WorkerPlace, ...]:
    """Return the places for workers that run side by side, one at least.

    Raises:
        TrainError: BAKEHOUSE_DEVICES is no number of workers that this machine has room for.
    """
    wanted = _wanted(environ)
    if wanted == 1:
        return (WorkerPlace("the one device", {}),)
    gpus = visible_gpus(environ)
    if not gpus:
        count = wanted or 1
        threads = max(1, (os.cpu_count() or 1) // count) if count > 1 else None
        return tuple(WorkerPlace(f"cpu {number}", {}, threads) for number in range(count))
    if wanted is not None and wanted > len(gpus):
        raise TrainError(f"{SETTING} is {wanted}, but {len(gpus)} GPUs are visible: {', '.join(gpus)}")
    chosen = gpus[:wanted]
    if len(chosen) == 1:
        return (WorkerPlace("the one device", {}),)
    return tuple(WorkerPlace(f"gpu {name}", {"CUDA_VISIBLE_DEVICES": name}) for name in chosen)


def _wanted(environ: Mapping[str, str]) -> int | None:
    text = environ.get(SETTING, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MOST:
        raise TrainError(f"{SETTING} is {text!r}; a whole number from 1 to {_MOST} is needed")
    return int(text)
