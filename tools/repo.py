"""The repository: the loop's worktree opened, repaired and brought up to date.

The user's working tree, index, HEAD, branch, stash and configuration are never written.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tools.checkout import Repo, find_repo
from tools.errors import RepoError
from tools.files import write_text_atomic
from tools.gitcommand import git_text, run_git
from tools.worktree import ITERATION_TRAILER, Worktree, clear_branch_lock, clear_worktree_locks, hold_worktree

if TYPE_CHECKING:
    from tools.workspace import Workspace

__all__ = ["ITERATION_TRAILER", "Repo", "Worktree", "ensure_worktree", "find_repo", "open_worktree"]

logger = logging.getLogger(__name__)

# What update-ref takes for "there is no such branch yet", whatever the repository's hash.
_NO_COMMIT = ""


def open_worktree(workspace: Workspace, branch: str) -> Worktree:
    """Return the workspace's worktree on branch, made or repaired as needed."""
    return ensure_worktree(workspace.root, workspace.worktree_dir, branch)


def ensure_worktree(
    workspace_root: str | Path, worktree_dir: str | Path, branch: str, *, base: str = "HEAD"
) -> Worktree:
    """Return a worktree at worktree_dir on branch, whatever a killed run left there.

    A branch that is missing is made at base; one that base contains is moved up to base; one
    that has gone its own way is kept, and `behind` says how much of base it lacks. Files in
    the worktree that are not committed yet are kept: a resumed run commits them.

    Args:
        workspace_root: The user's workspace, which may be a folder of the repository.
        worktree_dir: Where the worktree lies or shall lie.
        branch: Local branch that the loop alone writes to.
        base: Revision of the user's repository to start from.
    Raises:
        RepoError: the repository cannot be used, branch is checked out elsewhere or is no
            branch name, base names no commit, or worktree_dir holds something else.
        LockHeldError: a git of an earlier run is still at work in the worktree.
    """
    repo = find_repo(workspace_root)
    top = Path(worktree_dir).absolute()
    start = repo.resolve(base)
    if start is None:
        raise RepoError(f"{base!r} names no commit of {repo.root}; name a branch, a tag or a commit")
    _check_branch_name(repo, branch, top)
    top.parent.mkdir(parents=True, exist_ok=True)
    _hide_from_status(repo, top)
    with hold_worktree(top):
        _sweep(top)
        clear_branch_lock(repo, branch)
        present = _is_usable(repo, top)
        tip = _place_branch(repo, top, branch, start, present=present)
        if not top.exists() or not any(top.iterdir()):
            _add(repo, top, branch)
        _settle(top)
        worktree = Worktree(repo, top, branch, behind=repo.count_between(tip, start))
        worktree.root.mkdir(parents=True, exist_ok=True)
    return worktree


def _check_branch_name(repo: Repo, branch: str, top: Path) -> None:
    if branch.startswith("-") or not run_git(repo.root, "check-ref-format", f"refs/heads/{branch}").ok:
        raise RepoError(f"{branch!r} is no name for a branch; use one such as 'bakeoff/drone-router'")
    for path, name in repo.worktrees().items():
        if name == branch and path != top.resolve():
            raise RepoError(
                f"branch {branch} is checked out at {path}; switch that one to another branch, "
                "or give the loop a branch of its own"
            )


def _hide_from_status(repo: Repo, top: Path) -> None:
    """Keep the worktree out of the user's `git status`, by a file inside our own folder."""
    folder = top.resolve().parent
    if folder.is_relative_to(repo.root.resolve()) and not repo.is_ignored(top.resolve()):
        if folder in (repo.root.resolve(), (repo.root / repo.subfolder).resolve()):
            raise RepoError(f"git does not ignore {top}; put the worktree below .bakehouse, or ignore it")
        write_text_atomic(folder / ".gitignore", "*\n")


def _is_usable(repo: Repo, top: Path) -> bool:
    """Return whether top is a worktree of repo; move it aside when it only looks like one.

    Raises:
        RepoError: top is a link, or belongs to another repository.
    """
    if top.is_symlink():
        raise RepoError(f"{top} is a link; remove it, the worktree must be a folder of its own")
    if not top.exists() or (top.is_dir() and not any(top.iterdir())):
        return False
    if (top / ".git").is_dir():
        raise RepoError(f"{top} is a repository of its own; move it away")
    if not _knows_its_repo(repo, top):
        # A repository that was moved: git can mend the links between the two.
        run_git(repo.root, "worktree", "repair", str(top))
    if _knows_its_repo(repo, top):
        clear_worktree_locks(top)
        _mend_index(top)
        return True
    _move_aside(top)
    return False


def _knows_its_repo(repo: Repo, top: Path) -> bool:
    if not (top / ".git").is_file():
        return False
    output = run_git(
        top, "rev-parse", "--path-format=absolute", "--show-toplevel", "--git-common-dir", "HEAD"
    )
    lines = output.stdout.splitlines()
    if not output.ok or len(lines) != 3 or Path(lines[0]) != top.resolve():
        return False
    if Path(lines[1]).resolve() != repo.git_dir.resolve():
        raise RepoError(f"{top} is a worktree of {lines[1]}, not of {repo.git_dir}; move it away")
    return True


def _place_branch(repo: Repo, top: Path, branch: str, start: str, *, present: bool) -> str:
    """Make or move the branch, and return the commit that it is then on.

    A worktree whose branch moves is thrown away before and checked out anew after: were the
    branch moved under it, a kill between the two would leave old files that look like edits.
    """
    tip = repo.branch_tip(branch)
    moves = tip is None or (tip != start and repo.is_ancestor(tip, start))
    if present and (moves or not _is_on(top, branch)):
        changed = _changed_paths(top)
        if not changed:
            _throw_away(top)
        elif not _is_on(top, branch):
            raise RepoError(
                f"the worktree {top} has uncommitted work of another branch ({', '.join(changed[:5])}); "
                "commit or remove it there"
            )
        elif tip is not None:
            return tip
    if not moves and tip is not None:
        return tip
    git_text(repo.root, "update-ref", f"refs/heads/{branch}", start, tip or _NO_COMMIT)
    return start


def _is_on(top: Path, branch: str) -> bool:
    return run_git(top, "symbolic-ref", "--quiet", "HEAD").stdout == f"refs/heads/{branch}"


def _changed_paths(top: Path) -> list[str]:
    if not _has_index(top):
        return []
    status = git_text(top, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all")
    return [field[3:] for field in status.split("\0") if field]


def _add(repo: Repo, top: Path, branch: str) -> None:
    # Forced twice: over the record of a worktree whose folder is gone, and over the lock
    # that a git killed in the middle of this command leaves in it.
    git_text(repo.root, "worktree", "add", "--force", "--force", "--no-checkout", str(top), branch)


def _settle(top: Path) -> None:
    """Check the files out when that never ended; else unstage only."""
    clear_worktree_locks(top)
    git_text(top, "reset", "--quiet", *(() if _has_index(top) else ("--hard",)))


def _has_index(top: Path) -> bool:
    return _index_file(top).exists()


def _index_file(top: Path) -> Path:
    return Path(git_text(top, "rev-parse", "--path-format=absolute", "--git-path", "index"))


def _throw_away(top: Path) -> None:
    # Renamed first: a half-deleted worktree must never stand where a whole one is looked for.
    top.rename(_free_name(top, "trash"))
    _sweep(top)


def _sweep(top: Path) -> None:
    for path in top.parent.glob(f"{top.name}.trash-*"):
        shutil.rmtree(path, ignore_errors=True)


def _move_aside(top: Path) -> None:
    if [path.name for path in top.iterdir()] == [".git"]:
        _throw_away(top)
        return
    aside = _free_name(top, "lost")
    logger.warning("%s is no worktree any more; its files are kept in %s", top, aside)
    top.rename(aside)


def _mend_index(top: Path) -> None:
    output = run_git(top, "ls-files", "--error-unmatch", "--", ".git")
    # The one complaint of a readable index is that it has no such file.
    if "did not match" not in output.stderr:
        logger.warning("the index of %s is unreadable and is made anew: %s", top, output.complaint)
        _index_file(top).unlink(missing_ok=True)
        git_text(top, "reset", "--quiet")


def _free_name(top: Path, why: str) -> Path:
    number = 1
    while (path := top.with_name(f"{top.name}.{why}-{number}")).exists():
        number += 1
    return path
