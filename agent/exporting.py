"""Which run a merge is of, and whether what it exported answers as the adapter does."""

from __future__ import annotations

import json
from pathlib import Path

from tools.errors import MergeExportError
from tools.merge import MergeExportResult
from tools.models import resolve_base_model
from tools.parity import Parity, check_parity
from tools.recipe import MODE_FULL, TrainRecipe
from tools.workspace import Workspace

__all__ = ["check_export", "checkpoint_of", "parity_in_words", "recipe_of_run"]


def recipe_of_run(workspace: Workspace, trial: str | None, recipe_file: Path | None) -> TrainRecipe:
    """Return the recipe of the run to merge, its paths absolute.

    Args:
        trial: A trial of a bakeoff, whose runs lie in a folder of their own; None for the run of
            `bakehouse train`.
        recipe_file: The workspace's recipe when None.
    Raises:
        MergeExportError: there is no run of that trial, or its adapter cannot be read.
    """
    recipe = TrainRecipe.from_yaml(recipe_file) if recipe_file else workspace.load_recipe()
    if trial is None:
        return recipe.resolve(workspace.root)
    folder = workspace.inside(workspace.runs_dir / trial)
    if not folder.is_dir():
        known = sorted(path.name for path in workspace.runs_dir.glob("*") if (path / "runs-full").is_dir())
        raise MergeExportError(f"no run of trial {trial!r} in {workspace.runs_dir}; there are: {known[:40]}")
    recipe = recipe.replace(output_dir=str(folder)).resolve(workspace.root)
    base = _base_of(recipe.run_dir(MODE_FULL))
    return recipe if base is None else recipe.replace(base_model=base)


def check_export(workspace: Workspace, recipe: TrainRecipe, result: MergeExportResult, rows: int) -> Parity:
    """Compare adapter, merged weights and export on dev rows.

    Raises:
        MergeExportError: they could not be compared.
    """
    task = workspace.load_task()
    return check_parity(
        resolve_base_model(recipe.base_model),
        checkpoint_of(recipe, result),
        result.merged_hf_dir,
        workspace.split_file(task, "dev"),
        n_rows=rows,
        system_prompt_file=recipe.system_prompt_file,
    )


def checkpoint_of(recipe: TrainRecipe, result: MergeExportResult) -> Path:
    """Return the folder of the adapter that was merged."""
    run_dir = recipe.run_dir(MODE_FULL)
    names = (f"iter_{result.source_iter:07d}", f"checkpoint-{result.source_iter}")
    return next((run_dir / name for name in names if (run_dir / name).is_dir()), run_dir / names[0])


def parity_in_words(parity: Parity) -> str:
    """Return the numbers of a parity check in a line."""
    return (
        f"parity on {parity.n_tokens} tokens of {parity.n_rows} rows: "
        f"adapter {parity.adapter_effect:.2g}, rounding {parity.rounding:.2g}, "
        f"export {parity.export:.2g}, same choice {parity.same_choice:.1%}"
    )


def _base_of(run_dir: Path) -> str | None:
    """Return the base model that the run's adapters name: a trial's may not be the recipe's."""
    for path in sorted(run_dir.glob("iter_*/adapter_config.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError) as err:
            raise MergeExportError(f"{path} cannot be read: {err}") from err
        return str(found) if found else None
    return None
