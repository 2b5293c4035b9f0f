"""Approval: merging the bakeoff branch, up to a commit, into the branch that the user is on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.review.commits import BakeCommit, Branch, find_iteration, list_commits, pending_commits
from agent.review.reviewer import find_reviewer
from tools.checkout import Repo
from tools.commit_message import compose_message, fold_line
from tools.errors import RepoError
from tools.gitcommand import git_text, run_git

__all__ = ["Approval", "ApprovalPlan", "approve", "plan_approval"]

_SHOWN: Final = 10
_DECISION_CHARACTERS: Final = 400
# A hook that hangs must not hang the merge for ever.
_HOOKS_TIMEOUT_S: Final = 900.0


@dataclass(frozen=True)
class ApprovalPlan:
    """What an approval would merge, and where. `commits` is empty when all of it is merged already."""

    into: str
    branch: str
    target: str
    commits: tuple[BakeCommit, ...]


@dataclass(frozen=True)
class Approval:
    """What was merged. `commit` is None where everything had been merged before."""

    into: str
    branch: str
    merged: tuple[str, ...]
    commit: str | None
    reviewer: str | None


def plan_approval(branch: Branch, iteration_id: str | None) -> ApprovalPlan:
    """Return what approving an iteration, or None for all that is pending, would merge.

    Raises:
        RepoError: the user is on no branch or on the bakeoff branch, or the iteration is unknown,
            rejected, or cannot be merged without one that is neither.
    """
    into = branch.repo.branch
    if into is None:
        raise RepoError("HEAD is detached; switch to the branch that shall take the decision (git switch)")
    if into == branch.name:
        raise RepoError(f"you are on {into} itself; switch to the branch that shall take its decisions")
    target = branch.tip if iteration_id is None else _target(branch, find_iteration(branch, iteration_id))
    commits = () if branch.repo.is_ancestor(target, "HEAD") else list_commits(branch, "HEAD", target)
    return ApprovalPlan(into, branch.name, target, commits)


def approve(repo: Repo, plan: ApprovalPlan) -> Approval:
    """Merge what plan names, with a merge commit that carries `Reviewed-by`.

    The user's hooks and signing apply. Approved twice it changes nothing. A merge that git or a
    hook refuses is taken back.

    Raises:
        RepoError: files that the merge touches are not committed, the merge would conflict, git
            knows no name, or git or a hook refused.
    """
    if not plan.commits:
        return Approval(plan.into, plan.branch, (), None, None)
    reviewer = find_reviewer(repo)
    _check_quiet(repo)
    _check_clean(repo, plan.target)
    _check_conflicts(repo, plan)
    _merge(repo, plan, _message(plan, reviewer))
    return Approval(plan.into, plan.branch, tuple(c.name for c in plan.commits), repo.head, reviewer)


def _target(branch: Branch, commit: BakeCommit) -> str:
    """Return the commit to merge up to: the iteration's, or the last rejection of what it builds on."""
    if commit.rejected is not None:
        raise RepoError(
            f"{commit.name} was rejected ({commit.rejected}); approve a later iteration, or --all, which "
            "brings its record and the rejection"
        )
    later = list_commits(branch, commit.sha, branch.tip)
    inside = {c.name for c in pending_commits(branch)} - {c.name for c in later}
    undone = [i for i, c in enumerate(later) if c.rejects in inside]
    if not undone:
        return commit.sha
    last = undone[-1]
    between = [c.name for c in later[:last] if c.kind == "iteration" and c.rejected is None]
    if between:
        raise RepoError(
            f"{commit.name} builds on an iteration that was rejected only after {', '.join(between)} was "
            f"committed, so neither can be merged alone; approve {between[-1]} or --all"
        )
    return later[last].sha


def _check_quiet(repo: Repo) -> None:
    """Refuse while the user is in the middle of another operation."""
    for state, command in (
        ("MERGE_HEAD", "git merge --continue or --abort"),
        ("CHERRY_PICK_HEAD", "git cherry-pick --continue or --abort"),
        ("REVERT_HEAD", "git revert --continue or --abort"),
        ("rebase-merge", "git rebase --continue or --abort"),
        ("rebase-apply", "git rebase --continue or --abort"),
    ):
        place = git_text(repo.root, "rev-parse", "--path-format=absolute", "--git-path", state)
        if Path(place).exists():
            raise RepoError(f"{state} is there: another operation is open; end it with {command}")


def _check_clean(repo: Repo, target: str) -> None:
    """Refuse when the merge would meet work that is not committed, ignored files included."""
    touched = _differing(repo, f"HEAD...{target}")
    staged = _differing(repo, "--cached")
    if staged:
        raise RepoError(
            f"staged, but not committed: {_shorten(sorted(staged))}; commit or unstage it, then approve"
        )
    changed = touched & _differing(repo)
    tracked = set(_names(git_text(repo.root, "ls-files", "-z")))
    # git overwrites an ignored file without a word.
    in_the_way = {name for new in touched - tracked for name in _obstacles(repo.root, new)} - tracked
    if changed or in_the_way:
        raise RepoError(
            "the merge touches files with work that is not committed: "
            f"{_shorten(sorted(changed | in_the_way))}; commit, stash or move it away, then approve"
        )


def _obstacles(root: Path, name: str) -> list[str]:
    """Return what stands where a new file would go: itself, or a folder of its path that is none."""
    found = [name] if (root / name).is_symlink() or (root / name).exists() else []
    for folder in list(Path(name).parents)[:-1]:
        place = root / folder
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            found.append(folder.as_posix())
    return found


def _check_conflicts(repo: Repo, plan: ApprovalPlan) -> None:
    output = run_git(repo.root, "merge-tree", "--write-tree", "--name-only", "-z", "HEAD", plan.target)
    # A git before 2.38 does not know the question; then the merge itself finds out, and is taken back.
    if output.status == 1:
        names = sorted({name for name in output.stdout.split("\0\0")[0].split("\0")[1:] if name})
        raise RepoError(
            f"{plan.into} and {plan.branch} both changed {_shorten(names)}; nothing was merged. Merge by "
            f"hand (git merge {plan.branch}) and choose, or undo your change first"
        )


def _merge(repo: Repo, plan: ApprovalPlan, message: str) -> None:
    output = run_git(
        repo.root,
        *("merge", "--no-ff", "--commit", "--no-edit", "--no-squash", "--no-log", "--no-autostash"),
        *("--no-stat", "--cleanup=whitespace", "-m", message, plan.target),
        timeout_s=_HOOKS_TIMEOUT_S,
    )
    if repo.is_ancestor(plan.target, "HEAD"):
        return
    abort = run_git(repo.root, "merge", "--abort")
    state = "it was taken back" if abort.ok else "nothing was changed"
    raise RepoError(f"git would not merge, {state} (exit {output.status}): {output.complaint}")


def _message(plan: ApprovalPlan, reviewer: str) -> str:
    names = [commit.name for commit in plan.commits if commit.kind == "iteration"]
    told = [
        f"{commit.name}: {_clip(commit.rejected or commit.decision or commit.subject, commit)}"
        for commit in plan.commits
        if commit.kind == "iteration"
    ]
    subject = f"Approve {_shorten(names) or 'the commits'} of {plan.branch}"
    return compose_message(subject, "\n\n".join(told[:50]), {"Reviewed-by": reviewer})


def _clip(text: str, commit: BakeCommit) -> str:
    words = fold_line(f"rejected: {text}" if commit.rejected else text)
    return words if len(words) <= _DECISION_CHARACTERS else f"{words[:_DECISION_CHARACTERS]} …"


def _differing(repo: Repo, *what: str) -> set[str]:
    return set(_names(git_text(repo.root, "diff", "--name-only", "--no-renames", "-z", *what)))


def _names(output: str) -> list[str]:
    return [name for name in output.split("\0") if name]


def _shorten(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
