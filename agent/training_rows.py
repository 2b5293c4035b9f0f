"""Training rows of a candidate's own: a file that is named by what it holds, and found where it lies.

A recipe may train on `data/requests/<request>-<digest>.jsonl`: the rows of another file, and rows
that were made for a request. Until a person has merged the bakeoff that kept it, the file lies in
the workspace's state folder and on the bakeoff branch alone. Its name holds the digest of its
bytes, so the recipe's own digest covers the rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from tools.errors import TaskError
from tools.files import digest_bytes, digest_file, write_bytes_atomic
from tools.recipe import TrainRecipe
from tools.workspace import Workspace

__all__ = ["ROWS_FOLDER", "find_rows", "is_own_file", "resolve_recipe", "save_rows"]

ROWS_FOLDER: Final = "data/requests"
_NAME: Final = re.compile(r"q[0-9]{4,}-([0-9a-f]{16})\.jsonl\Z")


def is_own_file(dataset: str) -> bool:
    """Return whether a recipe's dataset is a file that this module names."""
    path = PurePosixPath(dataset)
    return path.parent == PurePosixPath(ROWS_FOLDER) and _NAME.match(path.name) is not None


def save_rows(workspace: Workspace, request: str, lines: Sequence[bytes]) -> str:
    """Write a data set into the state folder and return the name under which a recipe trains on it."""
    data = b"".join(line.rstrip(b"\n") + b"\n" for line in lines)
    name = f"{request}-{digest_bytes(data)[:16]}.jsonl"
    write_bytes_atomic(_kept(workspace, name), data)
    return f"{ROWS_FOLDER}/{name}"


def find_rows(workspace: Workspace, dataset: str) -> Path:
    """Return the file of a recipe's dataset: the workspace's, or one that is not merged yet.

    Raises:
        TaskError: it is a file of requests that is lost or changed.
    """
    if not is_own_file(dataset):
        return (workspace.root / Path(dataset).expanduser()).resolve()
    name = PurePosixPath(dataset).name
    branch = sorted(workspace.worktree_dir.rglob(dataset)) if workspace.worktree_dir.is_dir() else []
    found = [path for path in (workspace.inside(dataset), _kept(workspace, name), *branch) if path.is_file()]
    whole = next((path for path in found if digest_file(path).startswith(_digest_in(name))), None)
    if whole is not None:
        return whole
    state = "was changed, and its name holds the digest of what it was" if found else "is not here"
    raise TaskError(
        f"{dataset} {state}; restore it from the bakeoff branch, or let dataset_jsonl name a file of your own"
    )


def resolve_recipe(workspace: Workspace, recipe: TrainRecipe) -> TrainRecipe:
    """Return a recipe with absolute paths, its rows where they lie."""
    resolved = recipe.resolve(workspace.root)
    if not is_own_file(recipe.dataset_jsonl):
        return resolved
    return resolved.replace(dataset_jsonl=str(find_rows(workspace, recipe.dataset_jsonl)))


def _kept(workspace: Workspace, name: str) -> Path:
    return workspace.state_dir / "rows" / name


def _digest_in(name: str) -> str:
    found = _NAME.match(name)
    return found[1] if found else name
