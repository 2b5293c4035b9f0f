"""The workspaces below the operator's roots, and what inside them a client may name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mcp_server.settings import Settings
from tools.errors import RecipeError, TaskError

# A client waits for its list of tools: what only a call needs is imported by the call.
if TYPE_CHECKING:
    from tools.recipe import TrainRecipe
    from tools.workspace import Workspace

_TRIAL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_FILES: Final = (".yaml", ".yml", ".json")
CURRENT: Final = "current"


@dataclass(frozen=True)
class Confined:
    """What the operator's roots hold; every path that a client names goes through here."""

    settings: Settings

    def all(self) -> dict[str, Workspace]:
        """Return the workspaces by name: the roots that are one, and those one level below a root.

        A name is the folder's; where two are alike only the first counts, in the roots' order.
        """
        from tools.workspace import Workspace

        found: dict[str, Workspace] = {}
        for root in self.settings.roots:
            base = root.resolve()
            for folder in (base, *_children(base)):
                if (folder / "task.yaml").is_file():
                    found.setdefault(folder.name, Workspace(folder))
        return found

    def find(self, name: str) -> Workspace:
        """Return a workspace by name, the only one for an empty name.

        Raises:
            TaskError: there is none of that name, or the empty name fits several.
        """
        known = self.all()
        if not known:
            raise TaskError(
                "there is no workspace below the server's roots; `bakehouse init FOLDER` makes one, and the "
                "operator names its folder with --root"
            )
        if not name and len(known) == 1:
            return next(iter(known.values()))
        if name not in known:
            raise TaskError(f"workspace is {name[:80]!r}; allowed: {sorted(known)}")
        return known[name]

    def find_any(self, name: str) -> Workspace | None:
        """Return a workspace as `find`, or None where none is named and none or several exist."""
        return None if not name and len(self.all()) != 1 else self.find(name)

    def recipe(self, workspace: Workspace, name: str) -> TrainRecipe:
        """Return a recipe by id or by its path inside the workspace, checked against the operator's limits.

        Args:
            name: Empty or `current` for recipe.yaml, a trial's id, or a .yaml or .json file.
        Raises:
            RecipeError: there is no such recipe, or it asks for what the operator did not allow.
            TaskError: the path leaves the workspace.
        """
        from tools.recipe import TrainRecipe

        return self._checked(workspace, TrainRecipe.from_yaml(self.recipe_file(workspace, name)))

    def recipe_of_run(self, workspace: Workspace, name: str) -> TrainRecipe:
        """Return a recipe as `recipe` does, for its run: a trial's lies in a folder of the trial's own.

        Raises:
            RecipeError: as for `recipe`.
            TaskError: the path leaves the workspace.
            MergeExportError: the trial's run is not on this machine.
        """
        from agent.exporting import recipe_of_run

        if not self.is_trial(name):
            return self.recipe(workspace, name)
        return self._checked(workspace, recipe_of_run(workspace, name, self.recipe_file(workspace, name)))

    def is_trial(self, name: str) -> bool:
        """Return whether a recipe's name is a trial's id."""
        return name not in ("", CURRENT) and not name.endswith(_FILES)

    def _checked(self, workspace: Workspace, recipe: TrainRecipe) -> TrainRecipe:
        recipe.validate()
        self._check_lane(recipe)
        self._check_paths(workspace, recipe)
        return recipe

    def recipe_file(self, workspace: Workspace, name: str) -> Path:
        """Return the file of a recipe.

        Raises:
            RecipeError: there is no such recipe.
            TaskError: the path leaves the workspace.
        """
        if name in ("", CURRENT):
            return workspace.recipe_file
        if name.endswith(_FILES):
            return inside(workspace, name)
        if _TRIAL.match(name):
            from agent.score_sets import newest

            for place in (newest(workspace), workspace):
                path = place.lineage_dir / name / "recipe.yaml"
                if path.is_file() and path.resolve().is_relative_to(workspace.root.resolve()):
                    return path
        raise RecipeError(
            f"no recipe {name[:80]!r}; allowed: nothing for recipe.yaml, a trial's id from `lineage`, or a "
            "YAML file inside the workspace"
        )

    def freeze(self, workspace: Workspace, recipe: TrainRecipe) -> Path:
        """Write a checked recipe where no client can change it before the job reads it."""
        from tools.files import digest_json, write_text_atomic
        from tools.yaml_text import dump_yaml

        folder = workspace.state_dir / "mcp" / "recipes"
        name = digest_json(recipe.to_dict())[:16]
        return write_text_atomic(folder / f"{name}.yaml", dump_yaml(recipe.to_dict()))

    def _check_lane(self, recipe: TrainRecipe) -> None:
        if recipe.backend not in self.settings.lanes:
            raise RecipeError(
                f"the recipe's backend is {recipe.backend!r}; this server has {list(self.settings.lanes)}. "
                "The operator allows more with --lanes"
            )
        if recipe.container or recipe.extra_env:
            raise RecipeError(
                "the recipe names a container or an environment (container, extra_env), which is the "
                "operator's to choose; take both out, or train it with `bakehouse train`"
            )

    def _check_paths(self, workspace: Workspace, recipe: TrainRecipe) -> None:
        from tools.models import KNOWN_MODELS, cache_root

        for name in ("dataset_jsonl", "output_dir", "system_prompt_file"):
            value = getattr(recipe, name)
            if value is not None:
                inside(workspace, value)
        path = (workspace.root / Path(recipe.base_model).expanduser()).resolve()
        if recipe.base_model in KNOWN_MODELS or not path.exists():
            return
        allowed = (*self.settings.roots, *self.settings.model_dirs, cache_root())
        if not any(path.is_relative_to(folder.resolve()) for folder in allowed):
            raise RecipeError(
                f"base_model {recipe.base_model!r} lies outside of what this server may read; the operator "
                "allows its folder with --model-dir"
            )


def inside(workspace: Workspace, name: str) -> Path:
    """Return a path inside a workspace, links followed.

    Raises:
        TaskError: it leaves the workspace, or is no path.
    """
    if "\0" in name or len(name) > 4096 or name.startswith("~"):
        raise TaskError(f"{name[:80]!r} is no path inside the workspace")
    try:
        return workspace.inside(name)
    except (OSError, RuntimeError) as err:
        raise TaskError(f"{name[:80]!r} is no path inside the workspace: {type(err).__name__}") from err


def _children(root: Path) -> Sequence[Path]:
    try:
        return sorted(
            child
            for child in root.iterdir()
            if not child.name.startswith(".") and not child.is_symlink() and child.is_dir()
        )
    except OSError:
        return ()
