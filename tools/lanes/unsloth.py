"""The Unsloth lane: a trl trainer with Unsloth's kernels in its container."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.errors import TrainError
from tools.files import write_json_atomic
from tools.lanes.docker import exec_plan, exec_trainer, trainer_environment
from tools.lanes.lane import LaunchPlan, Outcome
from tools.lanes.shipping import ship
from tools.recipe import MODE_SMOKE, Mode, TrainRecipe

__all__ = ["UnslothLane", "merge_plan"]


class UnslothLane:
    """Starts the shipped trainer, or the bash script that extra_env['TRAIN_SCRIPT'] names."""

    name = "unsloth"

    def prepare(
        self, recipe: TrainRecipe, mode: Mode, run_dir: Path, *, mid_eval: Mapping[str, Any] | None = None
    ) -> LaunchPlan:
        """Return the docker command; the container must see the recipe's paths under the same names."""
        if mid_eval is not None:
            raise TrainError("backend 'unsloth' runs no mid-run evaluations; leave mid_eval out")
        env = trainer_environment(recipe, mode, run_dir)
        script = recipe.extra_env.get("TRAIN_SCRIPT")
        if script:
            return exec_trainer(recipe, ("bash", script), env=env, run_dir=run_dir)
        if recipe.use_dora:
            raise TrainError("the shipped unsloth trainer trains no DoRA; set use_dora to false")
        steps = int(env["SMOKE_STEPS"] if mode == MODE_SMOKE else env["MAX_STEPS"])
        spec = {"recipe": recipe.to_dict(), "run_dir": str(run_dir), "steps": steps}
        env |= {"PYTHONPATH": str(ship(run_dir))}
        path = write_json_atomic(run_dir / "unsloth-spec.json", spec)
        command = ("python3", "-P", "-m", "tools.lanes.scripts.train_unsloth", str(path))
        return exec_trainer(recipe, command, env=env, run_dir=run_dir)

    def outcome(self, run_dir: Path) -> Outcome | None:
        """Return None: the checkpoints on disk are all that this trainer says."""
        return None


def merge_plan(recipe: TrainRecipe, checkpoint: Path, merged_hf: Path) -> LaunchPlan:
    """Return the command that merges a checkpoint in the container.

    It is the shipped merge, or the bash script that extra_env['MERGE_SCRIPT'] names.
    """
    env = {"BASE_MODEL": recipe.base_model, "LORA_CKPT": str(checkpoint), "MERGED_HF": str(merged_hf)}
    script = recipe.extra_env.get("MERGE_SCRIPT")
    command: tuple[str, ...] = ("bash", str(script))
    if not script:
        spec = {"action": "merge", "base_model": recipe.base_model, "adapter": str(checkpoint)}
        spec_path = merged_hf.with_name(f".{merged_hf.name}.spec.json")
        write_json_atomic(spec_path, {**spec, "out": str(merged_hf)})
        env["PYTHONPATH"] = str(ship(merged_hf.parent))
        command = ("python3", "-P", "-m", "tools.merge_worker", str(spec_path))
    pid_file = merged_hf.with_name(f".{merged_hf.name}.pid")
    return exec_plan(recipe, command, env=env, pid_file=pid_file, mark="MERGED_HF")
