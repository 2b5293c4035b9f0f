"""What a reviewer is shown of the bakeoff branch: read from git alone, running nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import run

import pytest

from agent.review.commits import find_iteration, open_branch, pending_commits
from agent.review.details import read_details
from tests.agent.review_sample import Baked, make_baked
from tests.bakeoff_sample import TASK
from tests.git_project import isolate_git
from tools.errors import RepoError
from tools.repo import find_repo


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Baked:
    with pytest.MonkeyPatch.context() as patch:
        isolate_git(patch)
        made = make_baked(tmp_path_factory.mktemp("review") / "a workspace", "i0001", "i0002")
        made.bake("i0003", promoted=None)
    return made


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_git(monkeypatch)


def bakehouse(root: Path, *arguments: str) -> str:
    command = [sys.executable, "-P", "-m", "agent", "review", *arguments]
    done = run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pending_commits_carry_decision_gain_interval_and_planner(baked: Baked) -> None:
    commits = pending_commits(open_branch(find_repo(baked.root), TASK))
    assert [commit.name for commit in commits] == ["i0001", "i0002", "i0003"]
    first, _, last = commits
    ruling = baked.record.ruling("c1")
    assert ruling is not None
    assert first.promoted == "i0001-c1"
    assert (first.gain, first.low, first.high) == (ruling.gain, ruling.low, ruling.high)
    assert first.planner == "optuna"
    assert first.decision is not None
    assert first.decision.startswith("Keep c1")
    assert first.rejected is None
    assert last.promoted is None


def test_details_hold_recipe_diff_evidence_and_the_plots(baked: Baked) -> None:
    branch = open_branch(find_repo(baked.root), TASK)
    found = read_details(baked.workspace, branch, find_iteration(branch, "i0001"))
    assert "lora_rank 16 -> 32" in found.recipe_changes
    assert [(f.candidate, f.verdict) for f in found.findings] == [
        ("c1", "keep"),
        ("c2", "discard"),
        ("c3", "inconclusive"),
        ("c4", "refused"),
    ]
    assert all(f.evidence for f in found.findings)
    assert found.provenance is not None
    assert found.provenance["n_items"] == 120
    assert Path(found.report).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert Path(found.plots).read_bytes().startswith(b"\x89PNG")
    assert any("results.tsv" in line for line in found.files)


def test_a_clone_without_the_state_folder_says_how_git_prints_the_report(
    baked: Baked, tmp_path: Path
) -> None:
    clone = baked.clone(tmp_path / "copy")
    branch = open_branch(find_repo(clone.root), TASK)
    found = read_details(clone.workspace, branch, find_iteration(branch, "i0002"))
    assert clone.git(*found.report.split()[1:]).startswith("<!doctype html>")


def test_a_repository_without_the_branch_says_where_to_get_it(baked: Baked, tmp_path: Path) -> None:
    clone = baked.clone(tmp_path / "copy")
    clone.git("branch", "-D", "-q", "bakehouse/drone-router")
    with pytest.raises(RepoError, match="fetch the branch"):
        open_branch(find_repo(clone.root), TASK)


def test_an_unknown_iteration_is_told_what_there_is(baked: Baked) -> None:
    branch = open_branch(find_repo(baked.root), TASK)
    for name in ("i0099", "--all", "main", "i0001; rm"):
        with pytest.raises(RepoError, match="i0001, i0002, i0003"):
            find_iteration(branch, name)


def test_a_damaged_entry_costs_its_evidence_alone(baked: Baked, tmp_path: Path) -> None:
    worktree = baked.clone(tmp_path / "copy").worktree
    (entry,) = sorted((worktree.root / "decide-entries").glob("*i0003.yaml"))
    entry.write_text("findings: [", encoding="utf-8")
    trailers = {"Bakehouse-Iteration": "i0004", "Decision": entry.stem}
    worktree.commit([f"decide-entries/{entry.name}"], subject="i0004: torn", trailers=trailers)
    commit = pending_commits(open_branch(find_repo(tmp_path / "copy"), TASK))[-1]
    assert commit.name == "i0004"
    assert commit.gain is None
    assert commit.problem is not None
    assert "no YAML" in commit.problem


def test_the_commands_print_for_people_and_for_programs(baked: Baked) -> None:
    listed = json.loads(bakehouse(baked.root, "list", "--json"))
    assert listed["into"] == "main"
    assert [commit["name"] for commit in listed["commits"]] == ["i0001", "i0002", "i0003"]
    assert "i0002" in bakehouse(baked.root, "list")
    shown = json.loads(bakehouse(baked.root, "show", "i0001", "--json"))
    assert shown["commit"]["promoted"] == "i0001-c1"
    told = " ".join(bakehouse(baked.root, "show", "i0001").split())
    assert "lora_rank 16 -> 32" in told
    assert "report.html" in told
