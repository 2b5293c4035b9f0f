"""The locked half of a workspace: digests taken at the start and checked before every use."""

from __future__ import annotations

from agent.records import Record
from agent.training_rows import find_rows, is_own_file
from tools.errors import TaskError
from tools.files import digest_bytes, digest_file
from tools.task import SPLITS, Task
from tools.workspace import Workspace


class Locks(Record):
    """SHA-256 digests of what the agent may not change."""

    task: str
    """Over task.yaml's scorer, splits, seeds, target, level and the like."""
    splits: dict[str, str]
    """Over the bytes of each split's file, of the probe set where there is one, and of the rows that
    the recipe trains on where they are another file."""
    scorer: str
    """Over scorer.py where the task names the custom scorer, else over the scorer's name."""
    system_prompt: str

    @property
    def data_digest(self) -> str:
        """One digest over the splits and the system prompt: what a score was measured on."""
        parts = [f"{name}:{digest}" for name, digest in sorted(self.splits.items())]
        return digest_bytes("\n".join([*parts, self.system_prompt]).encode("utf-8"))


def take_locks(workspace: Workspace, system_prompt_file: str | None) -> Locks:
    """Read the locked files and return their digests.

    Raises:
        TaskError: a split or the custom scorer is missing.
    """
    task = workspace.load_task()
    return Locks(
        task=task.digest,
        splits={split: _digest_split(workspace, task, split) for split in SPLITS}
        | _digest_probe(workspace, task)
        | _digest_rows(workspace, task),
        scorer=_digest_scorer(workspace, task),
        system_prompt=_digest_prompt(workspace, system_prompt_file),
    )


def check_locks(workspace: Workspace, taken: Locks, system_prompt_file: str | None) -> None:
    """Raise when anything locked changed since it was taken.

    Raises:
        TaskError: names what changed.
    """
    now = take_locks(workspace, system_prompt_file)
    changed = [
        name for name in ("task", "scorer", "system_prompt") if getattr(now, name) != getattr(taken, name)
    ]
    named = sorted(now.splits.keys() | taken.splits.keys())
    changed += [f"data/{split}" for split in named if now.splits.get(split) != taken.splits.get(split)]
    if changed:
        raise TaskError(
            f"{', '.join(changed)} changed while the flywheel ran, so its scores no longer compare; "
            "put the files back, or start a new flywheel, which measures its baseline anew"
        )


def _digest_split(workspace: Workspace, task: Task, split: str) -> str:
    path = workspace.split_file(task, split)  # type: ignore[arg-type]
    if not path.is_file():
        raise TaskError(f"the {split} split is missing: {path}; see `data:` in {workspace.task_file}")
    return digest_file(path)


def _digest_probe(workspace: Workspace, task: Task) -> dict[str, str]:
    path = workspace.probe_file(task)
    return {"probe": digest_file(path)} if path.is_file() else {}


def _digest_rows(workspace: Workspace, task: Task) -> dict[str, str]:
    dataset = workspace.load_recipe().dataset_jsonl
    # A file whose name is its digest is checked wherever it is read.
    if is_own_file(dataset):
        return {}
    path = find_rows(workspace, dataset)
    if path == workspace.split_file(task, "train"):
        return {}
    if not path.is_file():
        raise TaskError(
            f"the recipe's rows are missing: {path}; see dataset_jsonl in {workspace.recipe_file}"
        )
    return {"rows": digest_file(path)}


def _digest_scorer(workspace: Workspace, task: Task) -> str:
    if task.scorer.name != "custom":
        return digest_bytes(task.scorer.model_dump_json().encode("utf-8"))
    path = workspace.root / "scorer.py"
    if not path.is_file():
        raise TaskError(f"scorer 'custom' needs {path} with a function score(expected, actual) -> float")
    return digest_file(path)


def _digest_prompt(workspace: Workspace, system_prompt_file: str | None) -> str:
    if system_prompt_file is None:
        return digest_bytes(b"")
    path = workspace.inside(system_prompt_file)
    if not path.is_file():
        raise TaskError(f"system_prompt_file is no file: {path}")
    return digest_file(path)
