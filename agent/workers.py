"""Workers: what runs a specification of the engine, and what its time costs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tools.errors import BudgetError, TrainError
from tools.lanes.replicas import ReplicatedEngine

__all__ = ["HoldsMemory", "RunWorker", "WorkerMeter", "opened_worker", "run_metered"]


class RunWorker(Protocol):
    """Runs one worker specification to its end and returns its result.

    Where a cap holds the worker it is also given `timeout_s`, and ends it then with a TrainError.
    """

    def __call__(self, spec: Mapping[str, Any], *, spec_path: Path, log_path: Path) -> Mapping[str, Any]: ...


class WorkerMeter(Protocol):
    """Counts the time of workers against a budget."""

    def limit_s(self) -> float | None:
        """Return the seconds after which a worker that starts now would pass a cap."""
        ...

    def note_worker(self, wall_s: float, gpus: int | None) -> None:
        """Count a worker's time; gpus is what it says that it held, None where it says nothing."""
        ...


@runtime_checkable
class HoldsMemory(Protocol):
    """A worker that keeps something loaded between two specifications."""

    def release(self) -> None:
        """Let go of it; the next specification loads it again."""
        ...


@contextlib.contextmanager
def opened_worker(run_worker: RunWorker | None) -> Iterator[RunWorker]:
    """Yield run_worker; for None the block's own engines, one a device, which load a base once."""
    if run_worker is not None:
        yield run_worker
        return
    with ReplicatedEngine() as engine:
        yield engine


def run_metered(meter: WorkerMeter | None, run: Callable[..., Mapping[str, Any]]) -> Mapping[str, Any]:
    """Run a worker under what is left of a budget, and count its time.

    Raises:
        BudgetError: it was ended by a cap.
    """
    if meter is None:
        return run()
    limit_s, began = meter.limit_s(), time.monotonic()
    try:
        result = run() if limit_s is None else run(timeout_s=limit_s)
    except BaseException as err:
        wall_s = time.monotonic() - began
        meter.note_worker(wall_s, None)
        if isinstance(err, TrainError) and limit_s is not None and wall_s >= limit_s:
            raise BudgetError(f"a cap of the budget ended the worker after {wall_s:.0f} s") from err
        raise
    usage = result.get("usage") or {}
    meter.note_worker(usage.get("wall_s", time.monotonic() - began), usage.get("gpus"))
    return result
