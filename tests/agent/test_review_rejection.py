"""Rejecting: the recipe goes back, the reason is kept, and nothing of what was learned is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.review.commits import open_branch, pending_commits
from agent.review.log import read_reviews
from agent.review.rejection import reject
from tests.agent.review_sample import BRANCH, Baked, make_baked
from tests.bakeoff_sample import BASE, TASK
from tests.git_project import isolate_git
from tools.decisions import load_entries
from tools.errors import DecideError, JournalError, LockHeldError, RepoError
from tools.journal import Journal
from tools.lineage import LineageStore
from tools.lock import hold_workspace
from tools.recipe import TrainRecipe
from tools.repo import find_repo

WHY = "wins on selection, but\nis too slow to serve"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Baked:
    with pytest.MonkeyPatch.context() as patch:
        isolate_git(patch)
        return make_baked(tmp_path_factory.mktemp("reject") / "w", "i0001", "i0002")


@pytest.fixture
def baked(template: Baked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Baked:
    isolate_git(monkeypatch)
    return template.clone(tmp_path / "w")


def journal(baked: Baked) -> Journal:
    return Journal(baked.workspace.journal_file, clock=lambda: "2026-11-21T08:00:00Z")


def test_a_rejected_recipe_goes_back_and_its_lineage_stays(baked: Baked) -> None:
    trials = LineageStore(baked.worktree.root / "lineage", lower_is_better=False).all_trials()
    user = (baked.git("rev-parse", "HEAD"), baked.git("status", "--porcelain"))
    done = reject(baked.workspace, "i0002", WHY, clock=lambda: "2026-11-21T08:00:00Z")
    assert done.already is False
    assert done.restored is not None
    assert "learning_rate 0.0004 -> 0.0002" in done.restored
    assert baked.recipe(BRANCH) == baked.recipe(f"{BRANCH}~2")
    assert baked.git("show", f"{BRANCH}:lineage/incumbent.json") == baked.git(
        "show", f"{BRANCH}~2:lineage/incumbent.json"
    )
    root = baked.worktree.root
    assert LineageStore(root / "lineage", lower_is_better=False).all_trials() == trials
    assert (root / "lineage" / "i0002" / "report.html").is_file()
    (entry,) = load_entries(dirs=[root / "decide-entries"], lifecycle="deprecated")
    assert entry.slug.endswith("i0002")
    assert entry.notes.endswith(
        "Rejected on 2026-11-21 by Ada Lovelace <ada@example.org>: "
        "wins on selection, but is too slow to serve"
    )
    (note,) = read_reviews(root)
    assert (note.iteration, note.review, note.commit) == (
        "i0002",
        "rejected",
        baked.git("rev-parse", f"{BRANCH}~1"),
    )
    assert (baked.git("rev-parse", "HEAD"), baked.git("status", "--porcelain")) == user
    assert baked.git("status", "--porcelain") == ""
    assert baked.worktree.changed_paths() == ()


def test_rejecting_twice_changes_nothing_and_the_first_reason_stands(baked: Baked) -> None:
    first = reject(baked.workspace, "i0002", WHY)
    tip = baked.git("rev-parse", BRANCH)
    again = reject(baked.workspace, "i0002", "another reason")
    assert again.already is True
    assert (again.commit, again.reason) == (first.commit, first.reason)
    assert baked.git("rev-parse", BRANCH) == tip


def test_all_can_be_rejected_from_the_newest_down_to_the_starting_recipe(baked: Baked) -> None:
    with pytest.raises(RepoError, match="i0002 was kept on top of i0001"):
        reject(baked.workspace, "i0001", WHY)
    reject(baked.workspace, "i0002", WHY)
    reject(baked.workspace, "i0001", WHY)
    assert baked.recipe(BRANCH) == BASE
    # With it goes the incumbent, so that the next flywheel measures the starting recipe.
    assert not (baked.worktree.root / "lineage" / "incumbent.json").exists()
    commits = pending_commits(open_branch(find_repo(baked.root), TASK))
    assert [commit.name for commit in commits] == ["i0001", "i0002", "reject-i0002", "reject-i0001"]
    assert [commit.rejected is not None for commit in commits] == [True, True, False, False]


def test_an_iteration_that_kept_nothing_loses_its_entry_and_moves_no_recipe(baked: Baked) -> None:
    baked.bake("i0003", promoted=None)
    done = reject(baked.workspace, "i0003", "the probe set was wrong")
    assert done.restored is None
    assert baked.recipe(BRANCH) == baked.recipe(f"{BRANCH}~1")
    assert baked.git("diff", "--name-only", f"{BRANCH}~1", BRANCH).splitlines() == [
        next(p for p in baked.git("ls-tree", "-r", "--name-only", BRANCH).splitlines() if "i0003.yaml" in p),
        "lineage/reviews.jsonl",
    ]


def test_a_recipe_that_somebody_changed_since_is_left_alone(baked: Baked) -> None:
    worktree = baked.worktree
    mine = TrainRecipe.from_yaml(worktree.root / "recipe.yaml").replace(lora_rank=64)
    mine.to_yaml(worktree.root / "recipe.yaml")
    worktree.commit(["recipe.yaml"], subject="A person's own change")
    assert reject(baked.workspace, "i0002", WHY).restored is None
    assert baked.recipe(BRANCH) == mine


def test_a_merged_iteration_can_still_be_rejected_and_the_rejection_be_merged(baked: Baked) -> None:
    baked.git("merge", "-q", "--no-ff", "--no-edit", BRANCH)
    merged = baked.recipe("HEAD")
    reject(baked.workspace, "i0002", WHY)
    assert baked.recipe("HEAD") == merged
    commits = pending_commits(open_branch(find_repo(baked.root), TASK))
    assert [commit.name for commit in commits] == ["reject-i0002"]
    baked.git("merge", "-q", "--no-edit", BRANCH)
    assert baked.recipe("HEAD") == baked.recipe("HEAD~1").replace(
        learning_rate=baked.recipe("HEAD").learning_rate
    )
    assert baked.recipe("HEAD") != merged


@pytest.mark.parametrize("reason", ["", "  \n", "x" * 1001])
def test_a_reason_is_asked_for(baked: Baked, reason: str) -> None:
    with pytest.raises(RepoError, match="allowed are 1 to 1000"):
        reject(baked.workspace, "i0002", reason)


def test_a_reason_with_a_credential_is_not_committed_and_nothing_is_left_behind(baked: Baked) -> None:
    tip = baked.git("rev-parse", BRANCH)
    key = "sk-ant-" + "a1B2c3D4" * 4
    with pytest.raises(RepoError, match="Anthropic API key"):
        reject(baked.workspace, "i0002", f"the key {key} was in it")
    assert baked.git("rev-parse", BRANCH) == tip
    reject(baked.workspace, "i0002", "a key was in it")
    assert key not in baked.git("log", "-1", "-p", BRANCH)


def test_what_a_killed_rejection_left_half_written_is_written_anew(baked: Baked) -> None:
    root = baked.worktree.root
    (root / "recipe.yaml").write_text("half")
    (root / "lineage" / "reviews.jsonl").write_text('{"iteration": "i0002", "torn')
    reject(baked.workspace, "i0002", WHY)
    assert len(read_reviews(root)) == 1
    assert baked.recipe(BRANCH) == baked.recipe(f"{BRANCH}~2")


def test_a_running_flywheel_is_not_disturbed(baked: Baked) -> None:
    with (
        hold_workspace(baked.workspace.state_dir, what="flywheel"),
        pytest.raises(LockHeldError, match="flywheel"),
    ):
        reject(baked.workspace, "i0002", WHY)


def test_an_iteration_cut_off_before_anything_was_spent_is_closed(baked: Baked) -> None:
    log = journal(baked)
    log.append("iteration_begin", "i0003", locks={})
    log.run_step("start", "i0003", lambda: {})
    reject(baked.workspace, "i0002", WHY)
    end = log.last("iteration_end", "i0003")
    assert end is not None
    assert "rejected" in end.data["abandoned"]


def test_an_iteration_cut_off_in_training_is_given_up_only_on_request(baked: Baked) -> None:
    log = journal(baked)
    log.append("iteration_begin", "i0003", locks={})
    for step in ("start", "plan", "validate", "smoke", "train"):
        log.run_step(step, "i0003", lambda: [])
    tip = baked.git("rev-parse", BRANCH)
    with pytest.raises(JournalError, match="--abandon"):
        reject(baked.workspace, "i0002", WHY)
    assert baked.git("rev-parse", BRANCH) == tip
    reject(baked.workspace, "i0002", WHY, abandon=True)
    assert log.last("iteration_end", "i0003") is not None


def test_the_next_iteration_tells_planners_what_was_rejected_and_why(baked: Baked) -> None:
    reject(baked.workspace, "i0002", WHY)
    baked.reload_incumbent()
    baked.bake("i0003", promoted=None)
    text = baked.git("show", f"{BRANCH}:AGENT_CONTEXT.md")
    assert "Rejected by a person: i0002, because wins on selection, but is too slow to serve" in text


def test_a_damaged_entry_is_named_and_nothing_is_committed(baked: Baked) -> None:
    worktree = baked.worktree
    (entry,) = worktree.root.glob("decide-entries/*i0002.yaml")
    entry.write_text("findings: [")
    worktree.commit([entry.relative_to(worktree.root)], subject="Damage an entry")
    tip = baked.git("rev-parse", BRANCH)
    with pytest.raises(DecideError, match="i0002"):
        reject(baked.workspace, "i0002", WHY)
    assert baked.git("rev-parse", BRANCH) == tip


def test_the_command_keeps_the_reason_and_says_what_changed_back(baked: Baked) -> None:
    command = [sys.executable, "-P", "-m", "agent", "review", "reject", "i0002", "--reason", "too slow"]
    refused = subprocess.run(
        command, cwd=baked.root, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert refused.returncode == 1
    assert "--yes" in refused.stderr
    done = subprocess.run([*command, "--yes"], cwd=baked.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert "i0002 rejected by" in told
    assert "learning_rate 0.0004 -> 0.0002" in told
