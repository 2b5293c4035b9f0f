"""What a tracker is: a place that takes a run's numbers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol

from tools.errors import TrackerError

__all__ = ["Ending", "OpenRun", "open_run"]

Ending = Literal["finished", "failed", "killed"]

_HOMES: Final = {
    "wandb": "tools.trackers.wandb_run",
    "trackio": "tools.trackers.trackio_run",
    "mlflow": "tools.trackers.mlflow_run",
}


class OpenRun(Protocol):
    """A run that a tracker has open. Any exception means that it was not told."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add numbers of a step. Steps never fall."""
        ...

    def summarise(self, values: Mapping[str, float]) -> None:
        """Set numbers of the whole run."""
        ...

    def flush(self) -> None:
        """Return once what was logged would outlive this process."""
        ...

    def finish(self, ending: Ending) -> None:
        """Close the run."""
        ...


def open_run(
    tracker: str, *, name: str, run_id: str, is_known: bool, config: Mapping[str, Any], folder: str
) -> OpenRun:
    """Open a run, or the same run again.

    Args:
        tracker: A key of `tools.trackers.choice.PACKAGES`.
        name: What people read.
        run_id: Names the run among all others, the same when it is opened again.
        is_known: The run may have been opened before.
        config: Plain values that describe it.
        folder: For files that the tracker keeps on this machine.
    Raises:
        TrackerError: no such tracker.
    """
    if tracker not in _HOMES:
        raise TrackerError(f"tracker is {tracker!r}; allowed: {sorted(_HOMES)}")
    made: OpenRun = importlib.import_module(_HOMES[tracker]).start(
        name=name, run_id=run_id, is_known=is_known, config=config, folder=folder
    )
    return made
