"""A repository with recorded bakeoffs committed to its bakeoff branch, and nothing trained."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from agent.incumbent import Incumbent
from agent.locks import Locks
from agent.publishing import publish
from agent.records import IterationRecord
from agent.rulings import promote
from tests.bakeoff_sample import BASE, ITERATION, TASK, build_bakeoff
from tools.recipe import TrainRecipe
from tools.repo import Worktree, ensure_worktree
from tools.workspace import Workspace
from tools.yaml_text import dump_yaml, parse_yaml

BRANCH = f"bakehouse/{TASK.name}"
LOCKS = Locks(
    task="1" * 64,
    splits={"train": "2" * 64, "dev": "3" * 64, "selection": "4" * 64, "test": "5" * 64},
    scorer="6" * 64,
    system_prompt="7" * 64,
)


def git(root: Path, *arguments: str, check: bool = True) -> str:
    done = subprocess.run(("git", *arguments), cwd=root, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


@dataclass
class Baked:
    """A user's repository, and the flywheel that commits recorded bakeoffs to its branch."""

    root: Path
    workspace: Workspace
    record: IterationRecord
    incumbent: Incumbent

    def bake(self, iteration_id: str, *, promoted: str | None = "c1") -> str:
        """Commit the recorded bakeoff as an iteration of that name, with c1 kept or nothing."""
        text = self.record.model_dump_json().replace(ITERATION, iteration_id)
        record = IterationRecord.model_validate_json(text)
        if promoted is None:
            decision = "Keep the incumbent: no winner."
            record = record.model_copy(update={"promoted": None, "decision": decision})
        else:
            # Each kept recipe differs from the one before, as a real one does.
            rate = self.incumbent.train_recipe.learning_rate * 2
            candidates = [
                one.model_copy(update={"recipe": {**one.recipe, "learning_rate": rate}})
                if one.candidate_id == promoted
                else one
                for one in record.candidates
            ]
            record = record.model_copy(update={"candidates": tuple(candidates)})
        self.incumbent = promote(record, self.incumbent)
        return publish(
            workspace=self.workspace,
            task=TASK,
            worktree=self.worktree,
            record=record,
            incumbent=self.incumbent,
        )

    def clone(self, root: Path) -> Baked:
        """Return a clone with both branches, as another machine has it: no state folder."""
        git(self.root, "clone", "-q", str(self.root), str(root))
        copy = Baked(root, Workspace(root), self.record, self.incumbent)
        copy.git("branch", "-q", BRANCH, f"origin/{BRANCH}")
        copy.git("config", "user.name", "Ada Lovelace")
        copy.git("config", "user.email", "ada@example.org")
        return copy

    @property
    def worktree(self) -> Worktree:
        return ensure_worktree(self.root, self.workspace.worktree_dir, BRANCH)

    def git(self, *arguments: str, check: bool = True) -> str:
        return git(self.root, *arguments, check=check)

    def recipe(self, revision: str) -> TrainRecipe:
        """Return recipe.yaml as a revision has it."""
        return TrainRecipe.from_dict(parse_yaml(self.git("show", f"{revision}:recipe.yaml")))

    def reload_incumbent(self) -> None:
        """Go on from the branch, as the next flywheel does; without an incumbent from the start."""
        text = self.git("show", f"{BRANCH}:lineage/incumbent.json", check=False)
        self.incumbent = Incumbent.model_validate(json.loads(text)) if text else first_incumbent(self.record)


def first_incumbent(record: IterationRecord) -> Incumbent:
    trials = record.trials_of("incumbent")
    return Incumbent(recipe=BASE.to_dict(), trials=trials, since=ITERATION, locks=LOCKS, start_trials=trials)


def make_baked(root: Path, *iterations: str, top: Path | None = None) -> Baked:
    """Write a workspace, commit it on main, and bake; the repository is top, or the workspace itself."""
    root.mkdir(parents=True)
    bakeoff = build_bakeoff(root)
    (root / "task.yaml").write_text(dump_yaml(TASK.model_dump(mode="json")), encoding="utf-8")
    BASE.to_yaml(root / "recipe.yaml")
    (root / ".gitignore").write_text(".bakehouse/\n", encoding="utf-8")
    for arguments in (
        ("init", "-q", "-b", "main", str(top or root)),
        ("config", "user.name", "Ada Lovelace"),
        ("config", "user.email", "ada@example.org"),
        ("add", "--", "task.yaml", "recipe.yaml", ".gitignore"),
        ("commit", "-q", "-m", "State the task"),
    ):
        git(root, *arguments)
    baked = Baked(root, bakeoff.workspace, bakeoff.record, first_incumbent(bakeoff.record))
    for iteration_id in iterations:
        baked.bake(iteration_id)
    return baked
