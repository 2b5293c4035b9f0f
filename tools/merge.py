"""A run's adapter merged into its base and exported in Hugging Face layout."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tools.child import Child, termination_as_exit, watch
from tools.errors import LockHeldError, MergeExportError, RecipeError, TrainError
from tools.folder_swap import replacing
from tools.lanes import LaunchPlan, local, nemo, unsloth
from tools.poll import BEST_TRACKER, TRACKER, poll_run_progress, read_tracker
from tools.recipe import MODE_FULL, TrainRecipe
from tools.run_folder import held
from tools.standardize import standardize_hf_export

__all__ = ["MergeExportResult", "merge_and_export"]

MERGED_HF: Final = "merged-hf-bf16"
MERGED_MCORE: Final = "merged-mcore"
# The engine's lanes: wherever it trained, its adapter is here and is merged here.
_OURS: Final = ("local", "ray")

# Megatron writes run_config.yaml after the tracker that announces the checkpoint.
_CONFIG_LAG_S: Final = 120.0

Runner = Callable[[list[str]], int]


@dataclass(frozen=True)
class MergeExportResult:
    """What an export changed and where it lies. Hashable.

    Source: fieldkit.training.MergeExportResult.
    """

    backend: str
    source_iter: int
    merged_hf_dir: str
    merged_mcore_dir: str | None = None
    tokenizer_class_remapped: tuple[tuple[str, str], ...] = field(default_factory=tuple)
    shard_renames: tuple[tuple[str, str], ...] = field(default_factory=tuple)
    standardize_applied: bool = False


def merge_and_export(
    recipe: TrainRecipe,
    *,
    iter: int | None = None,
    expect_iter: int | None = None,
    standardize: bool = True,
    tokenizer_class_remap: Mapping[str, str] | None = None,
    runner: Runner | None = None,
    timeout_s: float | None = None,
) -> MergeExportResult:
    """Merge a full run's adapter into its base and export to `<output_dir>/merged-hf-bf16`.

    An export that was there before is replaced only by a whole new one: on any failure, and
    after a kill by the next call, the old one is back.

    Args:
        recipe: What was trained.
        iter: The checkpoint to merge. By default the one that the tracker names; on the
            lanes local and ray the best by mid-run evaluation, where there were any.
        expect_iter: Refuse to merge any other checkpoint than this.
        standardize: Run `standardize_hf_export` on the export, then prove its tokenizer
            against the base model's where the merge ran here.
        tokenizer_class_remap: As `standardize_hf_export` takes it.
        runner: Takes each command and returns its exit code, in place of starting it here.
        timeout_s: Wall clock limit of each command started here.
    Raises:
        MergeExportError: the message begins with the stage that failed: merge, export or
            standardize.

    Source: fieldkit.training.merge_and_export.
    """
    checked = _check(recipe)
    source_iter, checkpoint = _find_checkpoint(checked, iter, expect_iter)
    output_dir = Path(checked.output_dir)
    commands = _Commands(runner, output_dir / "merge.log", timeout_s)
    merged_hf = output_dir / MERGED_HF
    try:
        with (
            termination_as_exit(),
            held(output_dir / f".{MERGED_HF}.lock", what=f"the export {merged_hf}"),
            replacing(merged_hf),
        ):
            mcore = _merge(checked, checkpoint, merged_hf, commands)
            _check_whole(merged_hf)
            shards: list[tuple[str, str]] = []
            remaps: list[tuple[str, str]] = []
            if standardize:
                shards, remaps = standardize_hf_export(merged_hf, tokenizer_class_remap=tokenizer_class_remap)
                if checked.backend in _OURS and runner is None:
                    commands.call(local.prove_plan(checked, merged_hf), "standardize", "the tokenizer proof")
    except LockHeldError as err:
        raise MergeExportError(f"merge: {err}") from err
    return MergeExportResult(
        backend=checked.backend,
        source_iter=source_iter,
        merged_hf_dir=str(merged_hf),
        merged_mcore_dir=None if mcore is None else str(mcore),
        tokenizer_class_remapped=tuple(remaps),
        shard_renames=tuple(shards),
        standardize_applied=standardize,
    )


def _merge(recipe: TrainRecipe, checkpoint: Path, merged_hf: Path, commands: _Commands) -> Path | None:
    """Fill merged_hf and return the merged Megatron checkpoint, where the lane leaves one."""
    if recipe.backend in _OURS:
        commands.call(local.merge_plan(recipe, checkpoint, merged_hf), "merge", "the merge")
        return None
    if recipe.backend == "unsloth":
        commands.call(unsloth.merge_plan(recipe, checkpoint, merged_hf), "merge", "the unsloth merge script")
        return None
    mcore = merged_hf.with_name(MERGED_MCORE)
    with replacing(mcore):
        commands.call(nemo.merge_plan(recipe, checkpoint, mcore), "merge", "merge_lora.py")
        if (mcore / "config.json").is_file():
            # Megatron-Bridge from 0.5 on: this already is the Hugging Face export.
            os.rename(mcore, merged_hf)
            return None
        commands.call(nemo.export_plan(recipe, mcore, merged_hf), "export", "convert_checkpoints.py")
    return mcore


@dataclass(frozen=True)
class _Commands:
    """Where the commands of one export are executed."""

    runner: Runner | None
    log_path: Path
    timeout_s: float | None

    def call(self, plan: LaunchPlan, stage: str, who: str) -> None:
        """Execute a plan to its end, or raise MergeExportError naming the stage."""
        if self.runner is not None:
            code = self.runner(list(plan.argv))
            if code != 0:
                raise MergeExportError(f"{stage}: {who} returned non-zero exit code {code}")
            return
        with Child.start(plan.argv, log_path=self.log_path, env=plan.env, stop_argv=plan.stop_argv) as child:
            end = watch(child, interval_s=0, timeout_s=self.timeout_s)
        try:
            local.explain_end(end, who, self.log_path, self.timeout_s)
        except TrainError as err:
            raise MergeExportError(f"{stage}: {err}") from err


def _check(recipe: TrainRecipe) -> TrainRecipe:
    try:
        recipe.preflight()
    except RecipeError as err:
        raise MergeExportError(f"merge: recipe failed preflight: {err}") from err
    return recipe.resolve(Path.cwd())


def _find_checkpoint(recipe: TrainRecipe, wanted: int | None, expected: int | None) -> tuple[int, Path]:
    run_dir = recipe.run_dir(MODE_FULL)
    if wanted is None and recipe.backend in _OURS:
        wanted = read_tracker(run_dir / BEST_TRACKER)
    if wanted is None:
        wanted, _ = poll_run_progress(run_dir)
    if wanted <= 0:
        raise MergeExportError(
            f"merge: {run_dir / TRACKER} names no checkpoint; train first, or pass iter=<n>"
        )
    if expected is not None and wanted != expected:
        raise MergeExportError(
            f"merge: the checkpoint to merge is {wanted}, not {expected} as expected; the run may have "
            "stopped short. Pass iter=<n> to merge a given one"
        )
    for name in (f"iter_{wanted:07d}", f"checkpoint-{wanted}"):
        if (run_dir / name).is_dir():
            if recipe.backend == "nemo":
                _await_run_config(run_dir, run_dir / name)
            return wanted, run_dir / name
    raise MergeExportError(
        f"merge: no checkpoint {wanted} in {run_dir}; on disk: {poll_run_progress(run_dir)[1] or 'none'}"
    )


def _await_run_config(run_dir: Path, checkpoint: Path) -> None:
    """Wait for the file that says what the adapter is; without it the merge would guess a LoRA."""
    config = checkpoint / "run_config.yaml"
    while not config.is_file():
        with contextlib.suppress(OSError):
            if time.time() - (run_dir / TRACKER).stat().st_mtime < _CONFIG_LAG_S:
                time.sleep(0.5)
                continue
        raise MergeExportError(
            f"merge: {config} is missing; without it the merge would assume a default LoRA. "
            "Take another checkpoint with iter=<n>"
        )


def _check_whole(folder: Path) -> None:
    """Refuse an export that lacks weights, or a shard that its index names."""
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    wanted: set[str] = set()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
            raise MergeExportError(f"export: {index} cannot be read: {err!r}") from err
    missing = sorted(str(name) for name in wanted - names)
    if missing or not any(name.endswith(".safetensors") for name in names):
        raise MergeExportError(f"export: {folder} is not whole; missing: {missing or 'all weights'}")
