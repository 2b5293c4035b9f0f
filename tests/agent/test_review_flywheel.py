"""Reviews between two real flywheels on a tiny model: the second goes on from what the person left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.review.approval import approve, plan_approval
from agent.review.commits import open_branch, pending_commits
from agent.review.rejection import reject
from tests.agent.bench import make_workspace, write_base
from tests.agent.test_flywheel import STRONG, git, turn
from tests.git_project import isolate_git
from tools.lineage import LineageStore
from tools.recipe import TrainRecipe
from tools.repo import find_repo
from tools.workspace import Workspace


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_git(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base model"))


def test_a_flywheel_after_a_rejection_and_one_after_an_approval(base: Path, tmp_path: Path) -> None:
    root = tmp_path / "w"
    root.mkdir()
    workspace = make_workspace(root, base, seeds=[17])
    start = TrainRecipe.from_yaml(workspace.recipe_file)
    assert turn(workspace, tmp_path, STRONG).records[0].promoted == "c1"
    reject(workspace, "i0001", "only a test")

    # The plan still holds the rejected patch; it was tried and is not proposed again.
    second = turn(workspace, tmp_path, STRONG, {"lora_alpha": 8}).records[0]
    assert [candidate.patch for candidate in second.candidates] == [{"lora_alpha": 8}]
    assert {t.trial_id for t in second.trials} == {"i0002-incumbent-s17", "i0002-c1-s17"}
    (measured,) = second.trials_of("incumbent")
    assert measured.train_recipe == start.replace(seed=17)
    rows = LineageStore(workspace.worktree_dir / "lineage", lower_is_better=False).all_trials()
    assert [row.exp_id for row in rows] == [
        "i0001-incumbent-s17",
        "i0001-c1-s17",
        "i0002-incumbent-s17",
        "i0002-c1-s17",
    ]

    repo = find_repo(root)
    task = workspace.load_task()
    done = approve(repo, plan_approval(open_branch(repo, task), None))
    assert done.merged == ("i0001", "reject-i0001", "i0002")
    assert TrainRecipe.from_yaml(workspace.recipe_file) == start
    third = turn(workspace, tmp_path, {"lora_alpha": 16}).records[0]
    # Approved, the incumbent stands with its scores: nothing is measured again.
    assert {t.trial_id for t in third.trials} == {"i0002-incumbent-s17", "i0003-c1-s17"}
    assert [c.name for c in pending_commits(open_branch(repo, task))] == ["i0003"]
    assert git(root, "merge-base", "--is-ancestor", "main", "bakehouse/colours") == ""
    assert _experiments(workspace) == [1, 2, 3]


def _experiments(workspace: Workspace) -> list[int]:
    lines = (workspace.state_dir / "experiments.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads((workspace.state_dir / "flywheel_heartbeat.json").read_text())["status"] == "completed"
    return [json.loads(line)["iteration"] for line in lines]
