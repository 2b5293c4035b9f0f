"""The ground of a decision: the task and data it was measured on must be those of today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from agent.locks import Locks, take_locks
from agent.publishing import INCUMBENT_FILE
from agent.rerun.pair import Pair
from agent.training_rows import find_rows, is_own_file
from tools.checkout import Repo
from tools.errors import BakehouseError, RerunError, TaskError
from tools.recipe import TrainRecipe
from tools.task import Task
from tools.workspace import Workspace
from tools.yaml_text import parse_yaml

__all__ = ["check_ground", "move_to_base"]

# The seeds are the entry's own, the rows are held by their digest, and a target judges no candidate.
_JUDGED_BY: Final = ("scorer", "level", "minimum_gain", "max_new_tokens", "forbidden_outputs")


def check_ground(workspace: Workspace, repo: Repo, task: Task, pair: Pair) -> None:
    """Refuse a pair that was measured on another task or other data than there are now.

    Raises:
        RerunError: says what changed.
    """
    for recipe in (pair.incumbent, pair.candidate):
        _check_rows(workspace, task, recipe)
        if recipe.backend != "local":
            raise RerunError(f"it trained on the lane {recipe.backend!r}; a re-run trains on local")
    now = take_locks(workspace, pair.candidate.system_prompt_file)
    then = _locks_then(repo, pair.source)
    if now.data_digest != pair.provenance.data_digest:
        raise RerunError(
            f"{_changed_data(now, then)} changed since it was measured, so scores do not compare"
        )
    _check_task(repo, task, pair.source)
    if task.scorer.name == "custom" and then.get("scorer") != now.scorer:
        raise RerunError("scorer.py changed since, so scores do not compare")


def move_to_base(pair: Pair, base_model: str) -> tuple[TrainRecipe, TrainRecipe]:
    """Return incumbent and candidate on a base model: what the workspace trains on today."""
    return pair.incumbent.replace(base_model=base_model), pair.candidate.replace(base_model=base_model)


def _check_rows(workspace: Workspace, task: Task, recipe: TrainRecipe) -> None:
    # The rows of the workspace's own recipe are in the digest of the data, as the splits are.
    held = (task.data.train, workspace.load_recipe().dataset_jsonl)
    if Path(recipe.dataset_jsonl) in map(Path, held):
        return
    if not is_own_file(recipe.dataset_jsonl):
        raise RerunError(f"it trained on {recipe.dataset_jsonl}, whose digest it does not record")
    try:
        find_rows(workspace, recipe.dataset_jsonl)
    except TaskError as err:
        raise RerunError(f"its rows are gone: {err}") from err


def _locks_then(repo: Repo, source: str) -> dict[str, Any]:
    """Return the digests of the entry's commit, as plain values: another version may have written them."""
    try:
        found = json.loads(repo.read_file(source, INCUMBENT_FILE) or "{}").get("locks")
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def _changed_data(now: Locks, then: dict[str, Any]) -> str:
    splits = then.get("splits")
    if not isinstance(splits, dict):
        return "the data or the system prompt"
    names = sorted(now.splits.keys() | splits.keys())
    changed = [f"data/{name}" for name in names if now.splits.get(name) != splits.get(name)]
    if then.get("system_prompt") != now.system_prompt:
        changed.append("the system prompt")
    return ", ".join(changed) or "the data or the system prompt"


def _check_task(repo: Repo, task: Task, source: str) -> None:
    text = repo.read_file(source, "task.yaml")
    if text is None:
        raise RerunError(f"commit {source[:12]} holds no task.yaml to compare with")
    try:
        # Read by the code of today: a digest on record would differ for a field that came since.
        before = Task.model_validate(parse_yaml(text))
    except (BakehouseError, ValueError) as err:
        raise RerunError(f"task.yaml of commit {source[:12]} cannot be read: {err}") from err
    changed = [name for name in _JUDGED_BY if getattr(before, name) != getattr(task, name)]
    if changed:
        raise RerunError(f"{', '.join(changed)} in task.yaml changed since, so verdicts do not compare")
