"""The repository: the worktree is made, reused and repaired, and the user's work is not touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.git_project import Project, git, isolate_git, make_project
from tools.errors import RepoError
from tools.repo import Worktree, ensure_worktree, find_repo, open_worktree
from tools.workspace import Workspace


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    isolate_git(monkeypatch)
    return make_project(tmp_path / "a project")


def opened(project: Project, branch: str = "bakeoff/router") -> Worktree:
    return ensure_worktree(project.workspace, project.worktree_dir, branch)


def put(worktree: Worktree, text: str, name: str = "recipe.yaml") -> str:
    (worktree.root / name).write_text(text, encoding="utf-8")
    return worktree.commit([name], subject=f"Write {name}")


def admin_dir(project: Project) -> Path:
    (found,) = (project.root / ".git" / "worktrees").iterdir()
    return found


def test_a_repository_is_found_from_a_folder_of_it(project: Project) -> None:
    repo = find_repo(project.workspace)
    assert repo.root == project.root
    assert repo.subfolder == Path("models/router")
    assert (repo.head, repo.branch, repo.branches) == (project.git("rev-parse", "HEAD"), "main", ("main",))


def test_a_detached_head_has_no_branch_and_works(project: Project) -> None:
    project.git("stash", "--quiet")
    project.git("checkout", "--quiet", "--detach")
    before = project.fingerprint()
    assert find_repo(project.root).branch is None
    worktree = opened(project)
    put(worktree, "lr: 1\n")
    assert worktree.repo.is_ancestor(project.git("rev-parse", "HEAD"), worktree.head)
    assert project.fingerprint() == before


def test_a_workspace_without_a_usable_repository_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate_git(monkeypatch)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(RepoError, match="not a folder"):
        find_repo(tmp_path / "missing")
    (tmp_path / "plain").mkdir()
    with pytest.raises(RepoError, match="in no git repository; make one: git init"):
        find_repo(tmp_path / "plain")
    git(tmp_path, "init", "--quiet", "--bare", "bare")
    with pytest.raises(RepoError, match="no working tree"):
        find_repo(tmp_path / "bare")
    git(tmp_path, "init", "--quiet", "unborn")
    with pytest.raises(RepoError, match="no commit yet"):
        find_repo(tmp_path / "unborn")


def test_a_missing_git_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    find_repo(project.root)
    monkeypatch.setenv("PATH", str(project.root))
    with pytest.raises(RepoError, match="git was not found"):
        find_repo(project.root)


def test_an_environment_that_points_git_elsewhere_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_INDEX_FILE", str(project.root / ".git" / "index"))
    with pytest.raises(RepoError, match="sets GIT_INDEX_FILE"):
        opened(project)


def test_a_worktree_starts_at_the_users_head_in_the_workspaces_folder(project: Project) -> None:
    worktree = open_worktree(Workspace(project.workspace), "bakeoff/router")
    assert worktree.top == project.worktree_dir
    assert worktree.root == project.worktree_dir / "models" / "router"
    assert (worktree.root / "task.yaml").read_text() == "name: router\n"
    assert (worktree.top / "README.md").read_text() == "hello\n"
    assert worktree.head == project.git("rev-parse", "main")
    assert worktree.behind == 0


def test_a_workspace_that_is_not_committed_yet_gets_its_folder(project: Project) -> None:
    workspace = project.root / "models" / "new"
    workspace.mkdir()
    worktree = ensure_worktree(workspace, workspace / ".bakehouse" / "worktree", "bakeoff/new")
    assert worktree.root.is_dir()
    put(worktree, "lr: 1\n")
    assert project.git("show", "bakeoff/new:models/new/recipe.yaml") == "lr: 1"


def test_nothing_of_the_user_changes(project: Project) -> None:
    project.hook("post-checkout", "touch hooked.txt\n")
    project.configure("branch.autoSetupMerge", "always")
    before = project.fingerprint()
    status = project.git("status", "--porcelain")
    worktree = opened(project)
    put(worktree, "lr: 1\n")
    worktree.discard_changes()
    put(opened(project), "lr: 2\n")
    opened(project, "bakeoff/other")
    shutil.rmtree(project.worktree_dir)
    opened(project)
    assert project.fingerprint() == before
    assert project.git("status", "--porcelain") == status
    assert project.git("stash", "list").count("\n") == 0
    assert project.git("fsck", "--no-dangling") == ""


def test_the_worktree_is_hidden_from_status_without_the_users_gitignore(project: Project) -> None:
    opened(project)
    assert ".bakehouse" not in project.git("status", "--porcelain", "--untracked-files=all")
    repo = find_repo(project.workspace)
    assert repo.is_ignored(".bakehouse/journal.jsonl")
    assert not repo.is_ignored("recipe.yaml")


def test_a_worktree_beside_the_users_files_is_refused_unless_ignored(project: Project) -> None:
    with pytest.raises(RepoError, match="git does not ignore"):
        ensure_worktree(project.workspace, project.workspace / "worktree", "bakeoff/router")
    assert not (project.workspace / ".gitignore").exists()


def test_uncommitted_work_in_the_worktree_survives_reopening(project: Project) -> None:
    worktree = opened(project)
    put(worktree, "lr: 1\n")
    (worktree.root / "recipe.yaml").write_text("lr: 2\n")
    (worktree.root / "new.txt").write_text("new\n")
    git(worktree.top, "add", "--all")
    again = opened(project)
    assert again.changed_paths() == ("models/router/recipe.yaml", "models/router/new.txt")
    assert git(worktree.top, "diff", "--cached", "--name-only") == ""
    assert (again.root / "recipe.yaml").read_text() == "lr: 2\n"
    again.discard_changes()
    assert again.changed_paths() == ()
    assert (again.root / "recipe.yaml").read_text() == "lr: 1\n"


def test_a_branch_without_commits_of_its_own_follows_the_users_head(project: Project) -> None:
    opened(project)
    new = project.commit_file("models/router/task.yaml", "name: better\n")
    before = project.fingerprint()
    worktree = opened(project)
    assert (worktree.head, worktree.behind) == (new, 0)
    assert (worktree.root / "task.yaml").read_text() == "name: better\n"
    assert worktree.changed_paths() == ()
    assert project.fingerprint() == before


def test_a_branch_with_work_in_its_worktree_waits(project: Project) -> None:
    worktree = opened(project)
    old = worktree.head
    (worktree.root / "recipe.yaml").write_text("lr: 1\n")
    project.commit_file("models/router/task.yaml", "name: better\n")
    again = opened(project)
    assert (again.head, again.behind) == (old, 1)
    assert (again.root / "recipe.yaml").read_text() == "lr: 1\n"


def test_a_branch_that_went_its_own_way_is_kept(project: Project) -> None:
    mine = put(opened(project), "lr: 1\n")
    project.commit_file("other.txt", "1\n")
    project.commit_file("other.txt", "2\n")
    worktree = opened(project)
    assert (worktree.head, worktree.behind) == (mine, 2)


def test_a_merged_branch_follows_the_merge(project: Project) -> None:
    mine = put(opened(project), "lr: 1\n")
    project.git("stash", "--quiet")
    project.commit_file("other.txt", "1\n")
    project.git("merge", "--quiet", "--no-edit", "bakeoff/router")
    worktree = opened(project)
    assert worktree.head == project.git("rev-parse", "main")
    assert worktree.repo.is_ancestor(mine, worktree.head)


def test_another_branch_takes_the_worktree_over_when_it_is_clean(project: Project) -> None:
    put(opened(project), "lr: 1\n")
    other = opened(project, "bakeoff/other")
    assert other.head == project.git("rev-parse", "main")
    assert not (other.root / "recipe.yaml").exists()
    (other.root / "recipe.yaml").write_text("lr: 2\n")
    with pytest.raises(RepoError, match=r"uncommitted work of another branch \(models/router/recipe.yaml\)"):
        opened(project)


def test_a_branch_that_the_user_is_on_is_refused_and_stays(project: Project) -> None:
    project.git("branch", "mine", "HEAD~1")
    elsewhere = project.root.parent / "elsewhere"
    project.git("worktree", "add", "--quiet", str(elsewhere), "mine")
    for branch in ("main", "mine"):
        tip = project.git("rev-parse", branch)
        with pytest.raises(RepoError, match=f"{branch} is checked out at"):
            opened(project, branch)
        assert project.git("rev-parse", branch) == tip


@pytest.mark.parametrize("branch", ["", "-f", "a..b", "a b", "x.lock", "refs/../x", "a\nb", "/x", "x/"])
def test_a_hostile_branch_name_is_refused(project: Project, branch: str) -> None:
    before = project.fingerprint()
    with pytest.raises(RepoError, match="no name for a branch"):
        opened(project, branch)
    assert project.fingerprint() == before


def test_a_base_that_names_nothing_is_refused(project: Project) -> None:
    with pytest.raises(RepoError, match="'--help' names no commit"):
        ensure_worktree(project.workspace, project.worktree_dir, "bakeoff/router", base="--help")


def test_a_deleted_folder_is_made_again(project: Project) -> None:
    mine = put(opened(project), "lr: 1\n")
    shutil.rmtree(project.worktree_dir)
    worktree = opened(project)
    assert worktree.head == mine
    assert worktree.changed_paths() == ()
    assert len(list((project.root / ".git" / "worktrees").iterdir())) == 1


def test_a_deleted_record_is_made_again_and_the_files_are_kept_aside(project: Project) -> None:
    mine = put(opened(project), "lr: 1\n")
    (project.worktree_dir / "precious.txt").write_text("not committed\n")
    shutil.rmtree(admin_dir(project))
    worktree = opened(project)
    assert worktree.head == mine
    assert worktree.changed_paths() == ()
    aside = project.worktree_dir.with_name("worktree.lost-1")
    assert (aside / "precious.txt").read_text() == "not committed\n"


def test_a_checkout_that_never_ended_is_ended(project: Project) -> None:
    opened(project)
    # What a kill leaves between the record of a worktree and the end of its first checkout.
    for path in project.worktree_dir.iterdir():
        if path.name != ".git":
            path.unlink() if path.is_file() else shutil.rmtree(path)
    (admin_dir(project) / "index").rename(admin_dir(project) / "index.lock")
    (admin_dir(project) / "locked").write_text("initializing")
    worktree = opened(project)
    assert worktree.changed_paths() == ()
    assert (worktree.root / "task.yaml").exists()
    put(worktree, "lr: 1\n")


@pytest.mark.parametrize("lost", ["HEAD", "commondir", "gitdir"])
def test_a_record_that_was_half_written_is_made_again(project: Project, lost: str) -> None:
    mine = put(opened(project), "lr: 1\n")
    (admin_dir(project) / lost).unlink()
    worktree = opened(project)
    assert worktree.head == mine
    assert worktree.changed_paths() == ()
    assert put(worktree, "lr: 2\n") == worktree.head


def leave_branch_lock(project: Project) -> Path:
    path = project.root / ".git" / "refs" / "heads" / "bakeoff" / "router.lock"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.utime(path, (0, 0))
    return path


def test_a_branch_whose_making_was_killed_is_made(project: Project) -> None:
    lock = leave_branch_lock(project)
    assert put(opened(project), "lr: 1\n")
    project.commit_file("other.txt", "1\n")
    project.git("update-ref", "refs/heads/bakeoff/router", "main~1")
    shutil.rmtree(project.worktree_dir)
    leave_branch_lock(project)
    assert opened(project).head == project.git("rev-parse", "main")
    assert not lock.exists()


def test_stale_locks_and_a_torn_index_are_mended(project: Project) -> None:
    worktree = opened(project)
    put(worktree, "lr: 1\n")
    (worktree.root / "recipe.yaml").write_text("lr: 2\n")
    index = admin_dir(project) / "index"
    index.write_bytes(index.read_bytes()[:40])
    for name in ("index", "HEAD", "ORIG_HEAD", "AUTO_MERGE"):
        (admin_dir(project) / f"{name}.lock").touch()
    branch_lock = leave_branch_lock(project)
    again = opened(project)
    assert again.changed_paths() == ("models/router/recipe.yaml",)
    again.commit(["recipe.yaml"], subject="Mended")
    assert not branch_lock.exists()


def test_a_project_that_was_moved_keeps_its_worktree(project: Project) -> None:
    worktree = opened(project)
    mine = put(worktree, "lr: 1\n")
    (worktree.root / "recipe.yaml").write_text("lr: 2\n")
    moved = Project(project.root.rename(project.root.with_name("moved")))
    again = opened(moved)
    assert (again.head, again.changed_paths()) == (mine, ("models/router/recipe.yaml",))
    assert list(moved.worktree_dir.parent.glob("worktree.lost-*")) == []


def test_a_folder_that_is_no_worktree_of_ours_is_refused_or_kept(project: Project, tmp_path: Path) -> None:
    state = project.worktree_dir.parent
    state.mkdir()
    git(state, "init", "--quiet", "worktree")
    with pytest.raises(RepoError, match="a repository of its own"):
        opened(project)
    shutil.rmtree(project.worktree_dir)
    (tmp_path / "target").mkdir()
    project.worktree_dir.symlink_to(tmp_path / "target")
    with pytest.raises(RepoError, match="is a link"):
        opened(project)
    project.worktree_dir.unlink()
    other = make_project(tmp_path / "other")
    other.git("worktree", "add", "--quiet", str(project.worktree_dir), "-b", "theirs")
    with pytest.raises(RepoError, match="is a worktree of"):
        opened(project)
    other.git("worktree", "remove", str(project.worktree_dir))
    project.worktree_dir.mkdir()
    (project.worktree_dir / "notes.txt").write_text("mine\n")
    opened(project)
    assert (state / "worktree.lost-1" / "notes.txt").read_text() == "mine\n"


def test_a_workspace_in_a_linked_worktree_of_the_user_works(project: Project) -> None:
    elsewhere = project.root.parent / "elsewhere"
    project.git("worktree", "add", "--quiet", str(elsewhere), "-b", "side")
    workspace = elsewhere / "models" / "router"
    worktree = ensure_worktree(workspace, workspace / ".bakehouse" / "worktree", "bakeoff/side")
    put(worktree, "lr: 1\n")
    assert git(elsewhere, "status", "--porcelain") == ""


def test_a_repository_of_sha_256_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_git(monkeypatch)
    git(tmp_path, "init", "--quiet", "--object-format=sha256", "modern")
    modern = Project(tmp_path / "modern")
    modern.commit_file("models/router/task.yaml", "name: router\n")
    assert len(put(opened(modern), "lr: 1\n")) == 64


def test_a_file_is_read_from_a_branch_without_its_worktree(project: Project) -> None:
    worktree = opened(project)
    put(worktree, "lr: 1\n")
    (worktree.root / "recipe.yaml").write_text("lr: 2\n")
    repo = find_repo(project.workspace)
    assert repo.read_file("bakeoff/router", "recipe.yaml") == "lr: 1"
    assert repo.read_file("main", "recipe.yaml") is None
    assert repo.read_file("missing", "recipe.yaml") is None
    assert repo.read_file("--help", "recipe.yaml") is None


def test_commits_are_shown_as_text(project: Project) -> None:
    worktree = opened(project)
    sha = put(worktree, "lr: 1\n")
    assert worktree.log(1).startswith(sha[:7])
    assert worktree.log(1).endswith("Write recipe.yaml")
    assert "models/router/recipe.yaml | 1 +" in worktree.show(sha)
    assert "+lr: 1" not in worktree.show(sha)
    assert "+lr: 1" in worktree.show(sha, patch=True)
    for hostile in ("--output=x", "missing", "HEAD:README.md"):
        with pytest.raises(RepoError, match="names no commit"):
            worktree.show(hostile)


def test_a_branch_in_a_locked_worktree_that_is_away_is_not_taken(project: Project) -> None:
    away = project.root.parent / "away"
    project.git("worktree", "add", "--quiet", str(away), "-b", "theirs")
    project.git("worktree", "lock", str(away))
    away.rename(away.with_name("unmounted"))
    with pytest.raises(RepoError, match="theirs is checked out at"):
        opened(project, "theirs")
