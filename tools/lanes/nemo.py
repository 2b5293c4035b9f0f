"""The NeMo lane: a Megatron-Bridge trainer in its container."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tools.errors import TrainError
from tools.files import write_json_atomic
from tools.lanes.docker import exec_plan, exec_trainer, trainer_environment
from tools.lanes.lane import LaunchPlan, Outcome
from tools.lanes.shipping import ship
from tools.recipe import MODE_SMOKE, Mode, TrainRecipe

__all__ = ["NemoLane", "export_plan", "merge_plan"]

BRIDGE_DIR: Final = "/opt/Megatron-Bridge"
_TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class NemoLane:
    """Starts the shipped trainer, or the one that extra_env['TRAIN_SCRIPT'] names, under torchrun."""

    name = "nemo"

    def prepare(
        self, recipe: TrainRecipe, mode: Mode, run_dir: Path, *, mid_eval: Mapping[str, Any] | None = None
    ) -> LaunchPlan:
        """Return the docker command; the container must see the recipe's paths under the same names.

        `extra_env` may name MCORE_BASE, the base model as a Megatron checkpoint (made there by
        the shipped trainer where it is missing), by default `mcore-base` below output_dir, and
        for a trainer of one's own DATASET_DIR, by default `dataset` below output_dir.
        """
        if mid_eval is not None:
            raise TrainError("backend 'nemo' runs no mid-run evaluations; leave mid_eval out")
        env = trainer_environment(recipe, mode, run_dir)
        if recipe.extra_env.get("TRAIN_SCRIPT"):
            return exec_trainer(recipe, _own_trainer(recipe, mode, run_dir, env), env=env, run_dir=run_dir)
        _check_shipped(recipe)
        # torchrun starts its workers without -P.
        env |= {"PYTHONPATH": str(ship(run_dir)), "PYTHONSAFEPATH": "1"}
        spec = {
            "action": "train",
            "recipe": recipe.to_dict(),
            "run_dir": str(run_dir),
            "steps": int(env["SMOKE_STEPS"] if mode == MODE_SMOKE else env["MAX_STEPS"]),
            "dataset_root": str(_dataset_root(recipe)),
            "megatron_base": str(_megatron_base(recipe)),
        }
        path = write_json_atomic(run_dir / "nemo-spec.json", spec)
        command = ("torchrun", "--nproc_per_node=1", "-m", "tools.lanes.scripts.train_nemo", str(path))
        return exec_trainer(recipe, command, env=env, run_dir=run_dir)

    def outcome(self, run_dir: Path) -> Outcome | None:
        """Return None: the checkpoints on disk are all that this trainer says."""
        return None


def _own_trainer(recipe: TrainRecipe, mode: Mode, run_dir: Path, env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the documented command line of a trainer of the user's own."""
    length = ("--smoke", env["SMOKE_STEPS"]) if mode == MODE_SMOKE else ("--train-iters", env["MAX_STEPS"])
    return (
        *("torchrun", "--nproc_per_node=1", recipe.extra_env["TRAIN_SCRIPT"]),
        *("--hf-model", recipe.base_model),
        *("--pretrained-mcore", str(_megatron_base(recipe))),
        *("--dataset-root", str(_dataset_root(recipe))),
        *("--run-dir", str(run_dir)),
        *length,
    )


def _check_shipped(recipe: TrainRecipe) -> None:
    if recipe.use_dora:
        raise TrainError("the shipped nemo trainer trains no DoRA; set use_dora to false")
    if recipe.lora_layers is not None:
        raise TrainError(
            "lora_layers: Megatron saves a module of all layers as one tensor, and fails where some have "
            "an adapter and others none; set it to null on the nemo lane"
        )
    if recipe.extra_env.get("DATASET_DIR"):
        raise TrainError(
            "the shipped nemo trainer writes its data itself, from dataset_jsonl; leave "
            "extra_env['DATASET_DIR'] out, or name a trainer of your own in extra_env['TRAIN_SCRIPT']"
        )
    unknown = [name for name in recipe.lora_target_modules if name not in _TARGETS]
    if unknown:
        raise TrainError(
            f"lora_target_modules {unknown}: Megatron has none such; allowed: {sorted(_TARGETS)}"
        )


def _megatron_base(recipe: TrainRecipe) -> Path:
    named = recipe.extra_env.get("MCORE_BASE")
    return Path(named) if named else Path(recipe.output_dir) / "mcore-base"


def _dataset_root(recipe: TrainRecipe) -> Path:
    named = recipe.extra_env.get("DATASET_DIR")
    return Path(named) if named else Path(recipe.output_dir) / "dataset"


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
