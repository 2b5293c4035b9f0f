"""The NeMo lane: a Megatron-Bridge trainer in its container."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.errors import TrainError
from tools.lanes.docker import exec_trainer, trainer_environment
from tools.lanes.lane import LaunchPlan, Outcome
from tools.recipe import MODE_SMOKE, Mode, TrainRecipe

__all__ = ["NemoLane"]


class NemoLane:
    """Starts `extra_env['TRAIN_SCRIPT']` under torchrun with the documented arguments."""

    name = "nemo"

    def prepare(
        self, recipe: TrainRecipe, mode: Mode, run_dir: Path, *, mid_eval: Mapping[str, Any] | None = None
    ) -> LaunchPlan:
        """Return the docker command; the container must see the recipe's paths under the same names.

        `extra_env` may name MCORE_BASE and DATASET_DIR, which default to `mcore-base` and
        `dataset` below output_dir.
        """
        script = recipe.extra_env.get("TRAIN_SCRIPT")
        if not script:
            raise TrainError(
                "backend 'nemo' needs extra_env['TRAIN_SCRIPT'], a trainer's path in the container"
            )
        if mid_eval is not None:
            raise TrainError("backend 'nemo' runs no mid-run evaluations; leave mid_eval out")
        output_dir = Path(recipe.output_dir)
        env = trainer_environment(recipe, mode, run_dir)
        length = (
            ("--smoke", env["SMOKE_STEPS"]) if mode == MODE_SMOKE else ("--train-iters", env["MAX_STEPS"])
        )
        command = (
            *("torchrun", "--nproc_per_node=1", script),
            *("--hf-model", recipe.base_model),
            *("--pretrained-mcore", recipe.extra_env.get("MCORE_BASE") or str(output_dir / "mcore-base")),
            *("--dataset-root", recipe.extra_env.get("DATASET_DIR") or str(output_dir / "dataset")),
            *("--run-dir", str(run_dir)),
            *length,
        )
        return exec_trainer(recipe, command, env=env, run_dir=run_dir)

    def outcome(self, run_dir: Path) -> Outcome | None:
        """Return None: the checkpoints on disk are all that this trainer says."""
        return None
