"""Weights & Biases: a run of the service, or files that `wandb sync` uploads later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import wandb

from tools.trackers.tracker import Ending

__all__ = ["WandbRun", "start"]


class WandbRun:
    """An open run of wandb."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def summarise(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def flush(self) -> None:
        """Its own process has every number already."""

    def finish(self, ending: Ending) -> None:
        self._run.finish(exit_code=0 if ending == "finished" else 1)


def start(*, name: str, run_id: str, is_known: bool, config: Mapping[str, Any], folder: str) -> WandbRun:
    """Open a run: `WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_DIR` and the like are wandb's own."""
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        init_timeout=30,
    )
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or "bakehouse",
        name=name,
        id=run_id,
        # Offline nothing can be asked; the files carry the id, and syncing joins them.
        resume="allow" if is_known and os.environ.get("WANDB_MODE") != "offline" else None,
        config=dict(config),
        dir=os.environ.get("WANDB_DIR") or folder,
        reinit="create_new",
        settings=settings,
    )
    return WandbRun(run)
