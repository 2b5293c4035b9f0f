"""The NeMo lane: a Megatron-Bridge trainer in its container."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tools.errors import TrainError
from tools.lanes.docker import exec_plan, exec_trainer, trainer_environment
from tools.lanes.lane import LaunchPlan, Outcome
from tools.recipe import MODE_SMOKE, Mode, TrainRecipe

__all__ = ["NemoLane", "export_plan", "merge_plan"]

BRIDGE_DIR: Final = "/opt/Megatron-Bridge"


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


def merge_plan(recipe: TrainRecipe, checkpoint: Path, merged: Path) -> LaunchPlan:
    """Return the command that merges a checkpoint's LoRA into the base.

    Megatron-Bridge writes a Megatron checkpoint to merged up to 0.4, a Hugging Face folder
    from 0.5 on. It lies at /opt/Megatron-Bridge unless extra_env['BRIDGE_DIR'] says otherwise.
    """
    command = (
        *("torchrun", "--nproc_per_node=1", _bridge(recipe, "examples/peft/merge_lora.py")),
        *("--lora-checkpoint", str(checkpoint)),
        *("--hf-model-path", recipe.base_model),
        *("--output", str(merged)),
    )
    return _merge_step(recipe, command, merged)


def export_plan(recipe: TrainRecipe, megatron: Path, merged_hf: Path) -> LaunchPlan:
    """Return the command that turns a merged Megatron checkpoint into a Hugging Face folder."""
    command = (
        *("python3", _bridge(recipe, "examples/conversion/convert_checkpoints.py"), "export"),
        *("--hf-model", recipe.base_model),
        *("--megatron-path", str(megatron)),
        *("--hf-path", str(merged_hf)),
    )
    return _merge_step(recipe, command, merged_hf)


def _bridge(recipe: TrainRecipe, script: str) -> str:
    return f"{recipe.extra_env.get('BRIDGE_DIR') or BRIDGE_DIR}/{script}"


def _merge_step(recipe: TrainRecipe, command: tuple[str, ...], output: Path) -> LaunchPlan:
    pid_file = output.with_name(f".{output.name}.pid")
    return exec_plan(
        recipe, command, env={"MERGE_OUTPUT": str(output)}, pid_file=pid_file, mark="MERGE_OUTPUT"
    )
