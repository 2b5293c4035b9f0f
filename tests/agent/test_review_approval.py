"""Approving: a merge that carries a name, touches nothing that is not committed, and is made once."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agent.review.approval import Approval, approve, plan_approval
from agent.review.commits import find_iteration, open_branch, pending_commits
from agent.review.details import read_details
from agent.review.rejection import reject
from tests.agent.review_sample import BRANCH, Baked, make_baked
from tests.bakeoff_sample import TASK
from tests.git_project import isolate_git
from tools.errors import RepoError
from tools.repo import find_repo


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Baked:
    with pytest.MonkeyPatch.context() as patch:
        isolate_git(patch)
        return make_baked(tmp_path_factory.mktemp("approve") / "w", "i0001", "i0002")


@pytest.fixture
def baked(template: Baked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Baked:
    isolate_git(monkeypatch)
    return template.clone(tmp_path / "w")


def approved(baked: Baked, iteration_id: str | None = None) -> Approval:
    repo = find_repo(baked.root)
    return approve(repo, plan_approval(open_branch(repo, TASK), iteration_id))


def pending(baked: Baked) -> list[str]:
    return [commit.name for commit in pending_commits(open_branch(find_repo(baked.root), TASK))]


def test_an_iteration_is_merged_with_the_name_of_its_reviewer(baked: Baked) -> None:
    before = baked.git("rev-parse", "HEAD")
    done = approved(baked, "i0001")
    assert done.merged == ("i0001",)
    assert baked.git("log", "-1", "--format=%P").split() == [before, baked.git("rev-parse", f"{BRANCH}^")]
    assert baked.git("log", "-1", "--format=%(trailers:key=Reviewed-by,valueonly)") == (
        "Ada Lovelace <ada@example.org>"
    )
    assert "Keep c1" in baked.git("log", "-1", "--format=%B")
    assert baked.recipe("HEAD") == baked.recipe(f"{BRANCH}^")
    assert baked.git("status", "--porcelain") == ""
    assert pending(baked) == ["i0002"]


def test_approving_twice_changes_nothing(baked: Baked) -> None:
    approved(baked)
    head = baked.git("rev-parse", "HEAD")
    again = approved(baked)
    assert (again.commit, again.merged) == (None, ())
    assert approved(baked, "i0001").commit is None
    assert baked.git("rev-parse", "HEAD") == head
    assert pending(baked) == []


def test_other_work_of_the_user_stays_as_it_is(baked: Baked) -> None:
    (baked.root / "mission.md").write_text("mine, untracked\n")
    (baked.root / "task.yaml").write_text((baked.root / "task.yaml").read_text() + "# mine\n")
    before = baked.git("status", "--porcelain")
    approved(baked)
    assert baked.git("status", "--porcelain") == before
    assert baked.recipe("HEAD") == baked.recipe(BRANCH)


@pytest.mark.parametrize(
    ("path", "state"),
    [
        ("recipe.yaml", "changed"),
        ("PLAN.md", "untracked"),
        ("AGENT_CONTEXT.md", "ignored"),
        ("lineage", "a file"),
        ("lineage", "a link"),
        ("task.yaml", "staged"),
    ],
)
def test_work_that_is_not_committed_is_never_overwritten(
    baked: Baked, tmp_path: Path, path: str, state: str
) -> None:
    place = baked.root / path
    if state == "a link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.write_text("mine\n")
    if state == "staged":
        baked.git("add", path)
    if state == "ignored":
        (baked.root / ".git" / "info" / "exclude").write_text(f"{path}\n")
    before = (baked.git("rev-parse", "HEAD"), baked.git("status", "--porcelain", "--ignored"))
    with pytest.raises(RepoError, match=path):
        approved(baked)
    assert (baked.git("rev-parse", "HEAD"), baked.git("status", "--porcelain", "--ignored")) == before
    if state == "a link":
        assert list((tmp_path / "elsewhere").iterdir()) == []
    else:
        assert place.read_text() == "mine\n"


def test_a_conflict_is_told_before_anything_is_touched(baked: Baked) -> None:
    recipe = baked.root / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("lora_rank: 16", "lora_rank: 64"))
    baked.git("commit", "-q", "-m", "Mine", "--", "recipe.yaml")
    head = baked.git("rev-parse", "HEAD")
    with pytest.raises(RepoError, match=r"both changed recipe\.yaml"):
        approved(baked)
    assert baked.git("rev-parse", "HEAD") == head
    assert baked.git("status", "--porcelain") == ""


@pytest.mark.parametrize("hook", ["pre-merge-commit", "commit-msg"])
def test_a_hook_that_refuses_leaves_no_half_merge(baked: Baked, hook: str) -> None:
    path = baked.root / ".git" / "hooks" / hook
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\necho not on my watch >&2\nexit 1\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    head = baked.git("rev-parse", "HEAD")
    with pytest.raises(RepoError, match="not on my watch"):
        approved(baked)
    assert baked.git("rev-parse", "HEAD") == head
    assert baked.git("status", "--porcelain") == ""
    assert not (baked.root / ".git" / "MERGE_HEAD").exists()
    path.unlink()
    assert approved(baked).commit is not None


def test_a_signature_that_is_asked_for_and_cannot_be_made_stops_the_merge(
    baked: Baked, tmp_path: Path
) -> None:
    signer = tmp_path / "signer"
    signer.write_text("#!/bin/sh\nexit 1\n")
    signer.chmod(0o755)
    baked.git("config", "commit.gpgSign", "true")
    baked.git("config", "gpg.program", str(signer))
    with pytest.raises(RepoError, match="would not merge"):
        approved(baked)
    assert baked.git("status", "--porcelain") == ""


def test_a_merge_that_is_still_open_is_the_users_to_end(baked: Baked) -> None:
    (baked.root / ".git" / "MERGE_HEAD").write_text(baked.git("rev-parse", BRANCH) + "\n")
    with pytest.raises(RepoError, match="git merge --continue or --abort"):
        approved(baked)


def test_settings_that_would_squash_or_fast_forward_do_not_take_the_review_away(baked: Baked) -> None:
    baked.git("config", "merge.ff", "only")
    baked.git("config", "branch.main.mergeOptions", "--squash")
    approved(baked)
    assert len(baked.git("log", "-1", "--format=%P").split()) == 2


def test_a_detached_head_and_the_bakeoff_branch_itself_are_refused(baked: Baked) -> None:
    baked.git("checkout", "-q", "--detach")
    with pytest.raises(RepoError, match="detached"):
        approved(baked)
    baked.git("checkout", "-q", BRANCH)
    with pytest.raises(RepoError, match="itself"):
        approved(baked)


def test_a_review_without_a_name_is_refused(baked: Baked, monkeypatch: pytest.MonkeyPatch) -> None:
    baked.git("config", "--unset", "user.name")
    baked.git("config", "--unset", "user.email")
    with pytest.raises(RepoError, match=r"git config user\.name"):
        approved(baked)


def test_a_rejected_iteration_is_merged_only_with_its_rejection(baked: Baked) -> None:
    reject(baked.workspace, "i0002", "too slow to serve")
    with pytest.raises(RepoError, match="too slow to serve"):
        approved(baked, "i0002")
    baked.reload_incumbent()
    baked.bake("i0003", promoted=None)
    done = approved(baked, "i0003")
    assert done.merged == ("i0001", "i0002", "reject-i0002", "i0003")
    assert baked.recipe("HEAD") == baked.recipe(f"{BRANCH}~2^")


def test_what_builds_on_a_later_rejected_iteration_brings_the_rejection(baked: Baked) -> None:
    baked.bake("i0003", promoted=None)
    reject(baked.workspace, "i0002", "too slow to serve")
    assert approved(baked, "i0003").merged == ("i0001", "i0002", "i0003", "reject-i0002")


def test_an_iteration_between_another_and_the_rejection_it_needs_is_named(baked: Baked) -> None:
    baked.bake("i0003", promoted=None)
    baked.bake("i0004", promoted=None)
    reject(baked.workspace, "i0002", "too slow to serve")
    with pytest.raises(RepoError, match="approve i0004 or --all"):
        approved(baked, "i0003")
    assert approved(baked, "i0001").merged == ("i0001",)


def test_the_command_asks_a_person(baked: Baked) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "agent", "review", "approve", *arguments]
        return subprocess.run(
            command, cwd=baked.root, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )

    head = baked.git("rev-parse", "HEAD")
    refused = run("--all")
    assert refused.returncode == 1
    assert "--yes" in refused.stderr
    assert run().returncode == 2
    assert baked.git("rev-parse", "HEAD") == head
    done = run("--all", "--yes")
    assert done.returncode == 0, done.stderr
    assert "i0001, i0002 merged into main" in done.stdout
    assert "already merged" in run("--all").stdout


def test_a_terminal_is_asked_and_may_say_no(baked: Baked) -> None:
    leader, follower = os.openpty()
    command = [sys.executable, "-P", "-m", "agent", "review", "approve", "i0001"]
    try:
        os.write(leader, b"n\n")
        done = subprocess.run(
            command, cwd=baked.root, stdin=follower, capture_output=True, text=True, check=False
        )
    finally:
        os.close(leader)
        os.close(follower)
    assert done.returncode == 1
    assert "Merge i0001" in done.stderr + done.stdout
    assert pending(baked) == ["i0001", "i0002"]


def test_a_workspace_in_a_folder_of_its_repository_is_reviewed_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate_git(monkeypatch)
    root = tmp_path / "a repository" / "models" / "router"
    baked = make_baked(root, "i0001", "i0002", top=tmp_path / "a repository")
    branch = open_branch(find_repo(root), TASK)
    details = read_details(baked.workspace, branch, find_iteration(branch, "i0001"))
    assert "lora_rank 16 -> 32" in details.recipe_changes
    assert Path(details.report).is_file()
    assert reject(baked.workspace, "i0002", "too slow to serve").restored is not None
    (root / "PLAN.md").write_text("mine")
    with pytest.raises(RepoError, match=r"models/router/PLAN\.md"):
        approved(baked)
    (root / "PLAN.md").unlink()
    assert approved(baked).merged == ("i0001", "i0002", "reject-i0002")
    assert (root / "lineage" / "reviews.jsonl").is_file()
    assert baked.git("status", "--porcelain") == ""
