"""Trackio: a Space, a server of one's own, or files of this machine."""

from __future__ import annotations

import contextvars
import os
from collections.abc import Mapping
from typing import Any

import trackio

from tools.trackers.tracker import Ending

__all__ = ["TrackioRun", "start"]


class TrackioRun:
    """An open run of trackio."""

    def __init__(self, run: Any, context: contextvars.Context) -> None:
        self._run = run
        self._context = context
        self._step = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._step = step
        self._context.run(self._run.log, dict(values), step)

    def summarise(self, values: Mapping[str, float]) -> None:
        # Trackio has no numbers of a whole run.
        self._context.run(self._run.log, dict(values), self._step or None)

    def flush(self) -> None:
        """Its own thread writes within a second."""

    def finish(self, ending: Ending) -> None:
        self._context.run(self._run.finish)


def start(*, name: str, run_id: str, is_known: bool, config: Mapping[str, Any], folder: str) -> TrackioRun:
    """Open a run; where it goes is read from the environment by trackio itself."""
    # Trackio closes the run before when it opens the next one in the same context.
    context = contextvars.Context()
    run = context.run(
        trackio.init,
        project=os.environ.get("TRACKIO_PROJECT") or "bakehouse",
        name=name,
        resume="allow" if is_known else "never",
        config={**config, "bakehouse_run": run_id},
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return TrackioRun(run, context)
