"""Training rows of a candidate's own: found where they lie, and only as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.planners.candidates import recipe_key
from agent.training_rows import find_rows, is_own_file, resolve_recipe, save_rows
from tools.errors import TaskError
from tools.recipe import TrainRecipe
from tools.workspace import Workspace

LINES = [b'{"a": 1}', b'{"b": 2}\n']


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_a_data_set_is_named_by_its_bytes_and_found_in_the_state_folder(workspace: Workspace) -> None:
    name = save_rows(workspace, "q0003", LINES)
    assert is_own_file(name)
    assert save_rows(workspace, "q0003", LINES) == name
    assert save_rows(workspace, "q0003", LINES[:1]) != name
    assert find_rows(workspace, name).read_bytes() == b'{"a": 1}\n{"b": 2}\n'
    recipe = TrainRecipe("base", name, "out")
    assert resolve_recipe(workspace, recipe).dataset_jsonl == str(find_rows(workspace, name))
    # Other rows teach something else, whatever the settings are.
    assert recipe_key(recipe) != recipe_key(TrainRecipe("base", "data/train.jsonl", "out"))


def test_the_workspaces_own_file_comes_first_and_one_that_was_changed_counts_for_nothing(
    workspace: Workspace,
) -> None:
    name = save_rows(workspace, "q0003", LINES)
    kept = find_rows(workspace, name)
    merged = workspace.root / name
    merged.parent.mkdir(parents=True)
    merged.write_bytes(kept.read_bytes())
    assert find_rows(workspace, name) == merged
    merged.write_bytes(b'{"a": "another"}\n')
    assert find_rows(workspace, name) == kept
    branch = workspace.worktree_dir / "sub" / name
    branch.parent.mkdir(parents=True)
    kept.rename(branch)
    assert find_rows(workspace, name) == branch
    branch.write_bytes(b"")
    with pytest.raises(TaskError, match="was changed"):
        find_rows(workspace, name)
    branch.unlink()
    merged.unlink()
    with pytest.raises(TaskError, match="is not here"):
        find_rows(workspace, name)


@pytest.mark.parametrize(
    "dataset", ["data/train.jsonl", "data/requests/q1.jsonl", "../data/requests/q0001-0123456789abcdef.jsonl"]
)
def test_any_other_data_set_is_where_its_path_says(workspace: Workspace, dataset: str) -> None:
    assert not is_own_file(dataset)
    assert find_rows(workspace, dataset) == (workspace.root / dataset).resolve()
