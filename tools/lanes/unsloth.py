"""The Unsloth lane: a trl trainer with Unsloth's kernels in its container."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.errors import MergeExportError, TrainError
from tools.lanes.docker import exec_plan, exec_trainer, trainer_environment
from tools.lanes.lane import LaunchPlan, Outcome
from tools.recipe import Mode, TrainRecipe

__all__ = ["UnslothLane", "merge_plan"]


class UnslothLane:
    """Starts `extra_env['TRAIN_SCRIPT']` with the recipe in its environment."""

    name = "unsloth"

    def prepare(
        self, recipe: TrainRecipe, mode: Mode, run_dir: Path, *, mid_eval: Mapping[str, Any] | None = None
    ) -> LaunchPlan:
        """Return the docker command; the container must see the recipe's paths under the same names."""
        script = recipe.extra_env.get("TRAIN_SCRIPT")
        if not script:
            raise TrainError(
                "backend 'unsloth' needs extra_env['TRAIN_SCRIPT'], a bash script's path in the container"
            )
        if mid_eval is not None:
            raise TrainError("backend 'unsloth' runs no mid-run evaluations; leave mid_eval out")
        env = trainer_environment(recipe, mode, run_dir)
        return exec_trainer(recipe, ("bash", script), env=env, run_dir=run_dir)

    def outcome(self, run_dir: Path) -> Outcome | None:
        """Return None: the checkpoints on disk are all that this trainer says."""
        return None


def merge_plan(recipe: TrainRecipe, checkpoint: Path, merged_hf: Path) -> LaunchPlan:
    """Return the command that runs extra_env['MERGE_SCRIPT'] on a checkpoint.

    Raises:
        MergeExportError: the recipe names no script.
    """
    script = recipe.extra_env.get("MERGE_SCRIPT")
    if not script:
        raise MergeExportError(
            "merge: backend 'unsloth' needs extra_env['MERGE_SCRIPT'], a bash script's path in the container"
        )
    env = {"BASE_MODEL": recipe.base_model, "LORA_CKPT": str(checkpoint), "MERGED_HF": str(merged_hf)}
    pid_file = merged_hf.with_name(f".{merged_hf.name}.pid")
    return exec_plan(recipe, ("bash", script), env=env, pid_file=pid_file, mark="MERGED_HF")
