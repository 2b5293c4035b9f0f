"""The workspace: where everything of one task lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.errors import TaskError
from tools.recipe import TrainRecipe
from tools.task import SPLITS, Split, Task


@dataclass(frozen=True)
class Workspace:
    """Paths of a workspace; builds nothing and reads nothing until asked."""

    root: Path

    @classmethod
    def find(cls, start: str | Path = ".") -> Workspace:
        """Return the workspace that holds start, looking upwards for task.yaml.

        Raises:
            TaskError: neither start nor a folder above it holds a task.yaml.
        """
        here = Path(start).expanduser().resolve()
        for folder in (here, *here.parents):
            if (folder / "task.yaml").is_file():
                return cls(folder)
        raise TaskError(f"{here} is in no workspace: no task.yaml here or above; `bakehouse init` makes one")

    @property
    def task_file(self) -> Path:
        return self.root / "task.yaml"

    @property
    def recipe_file(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def entries_dir(self) -> Path:
        return self.root / "decide-entries"

    @property
    def lineage_dir(self) -> Path:
        return self.root / "lineage"

    @property
    def state_dir(self) -> Path:
        """Everything that is never committed."""
        return self.root / ".bakehouse"

    @property
    def journal_file(self) -> Path:
        return self.state_dir / "journal.jsonl"

    @property
    def jobs_dir(self) -> Path:
        return self.state_dir / "jobs"

    @property
    def runs_dir(self) -> Path:
        return self.state_dir / "runs"

    @property
    def reports_dir(self) -> Path:
        return self.state_dir / "reports"

    @property
    def worktree_dir(self) -> Path:
        return self.state_dir / "worktree"

    def load_task(self) -> Task:
        """Read and check task.yaml."""
        return Task.from_yaml(self.task_file)

    def load_recipe(self) -> TrainRecipe:
        """Read and check recipe.yaml, its paths as written."""
        recipe = TrainRecipe.from_yaml(self.recipe_file)
        recipe.validate()
        return recipe

    def split_file(self, task: Task, split: Split) -> Path:
        """Return the file of a split.

        Raises:
            TaskError: split is unknown, or its path leaves the workspace.
        """
        if split not in SPLITS:
            raise TaskError(f"split is {split!r}; allowed: {list(SPLITS)}")
        return self.inside(getattr(task.data, split))

    def probe_file(self, task: Task) -> Path:
        """Return the file of the probe set, which may be missing."""
        return self.inside(task.data.probe)

    def inside(self, relative: str | Path) -> Path:
        """Return root/relative.

        Raises:
            TaskError: the path, links followed, leaves the workspace.
        """
        path = (self.root / relative).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise TaskError(f"{relative} leaves the workspace {self.root}; use a path inside it")
        return path
