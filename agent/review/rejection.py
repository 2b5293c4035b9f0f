"""Rejection: taking a decision back on the bakeoff branch, with its reason; the lineage stays."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from agent.publishing import INCUMBENT_FILE
from agent.review.commits import (
    BakeCommit,
    Branch,
    entry_path,
    find_iteration,
    list_commits,
    open_branch,
    rejection_name,
)
from agent.review.log import REVIEWS_FILE, ReviewNote, append_review
from agent.review.reviewer import find_reviewer
from tools.clock import Clock, utc_now
from tools.commit_message import fold_line
from tools.decisions import DecideEntry, write_entry
from tools.errors import JournalError, RepoError
from tools.files import write_text_atomic
from tools.journal import Journal
from tools.lock import hold_workspace
from tools.patch import format_diff
from tools.recipe import TrainRecipe
from tools.repo import ITERATION_TRAILER, Worktree, ensure_worktree, find_repo
from tools.workspace import Workspace
from tools.yaml_text import parse_yaml

__all__ = ["Rejection", "reject"]

_RECIPE: Final = "recipe.yaml"
_REASON_CHARACTERS: Final = 1000
# Steps after which nothing has been spent yet that a closed iteration would lose.
_CHEAP_STEPS: Final = frozenset({"start", "begin", "plan", "validate"})


@dataclass(frozen=True)
class Rejection:
    """What a rejection did. `already` says that an earlier one stands, with its reason."""

    iteration: str
    commit: str
    reason: str
    already: bool
    restored: str | None = None
    """How the recipe changed back; None where it is as it was."""


def reject(
    workspace: Workspace, iteration_id: str, reason: str, *, abandon: bool = False, clock: Clock = utc_now
) -> Rejection:
    """Commit on the bakeoff branch that an iteration's decision does not stand.

    Its entry becomes `deprecated` with the reason, `lineage/reviews.jsonl` gets a line, and where
    it changed the recipe, recipe.yaml and the incumbent are again what they were before it. Trials,
    scores and reports stay. Rejected twice it changes nothing.

    Args:
        abandon: Close an iteration that was cut off and compares with what is rejected.
    Raises:
        RepoError: there is no such iteration, no reason, a later one was kept on top of it, or git
            knows no name.
        JournalError: an iteration that was cut off stands in the way.
        LockHeldError: a flywheel runs on this workspace.
    """
    repo = find_repo(workspace.root)
    told = fold_line(reason)
    if not told or len(told) > _REASON_CHARACTERS:
        raise RepoError(f"the reason has {len(told)} characters; allowed are 1 to {_REASON_CHARACTERS}")
    with hold_workspace(workspace.state_dir, what="review", clock=clock):
        branch = open_branch(repo, workspace.load_task())
        commit = find_iteration(branch, iteration_id)
        if commit.rejected is not None:
            sha = repo.find_commit(branch.name, ITERATION_TRAILER, rejection_name(iteration_id))
            return Rejection(iteration_id, str(sha), commit.rejected, already=True)
        by = find_reviewer(repo)
        if commit.promoted is not None:
            _check_on_top(branch, commit)
            _close_open_iteration(Journal(workspace.journal_file, clock=clock), branch, abandon=abandon)
        worktree = ensure_worktree(workspace.root, workspace.worktree_dir, branch.name)
        return _commit(worktree, commit, ReviewNote(iteration_id, "rejected", told, by, clock(), commit.sha))


def _check_on_top(branch: Branch, commit: BakeCommit) -> None:
    later = list_commits(branch, commit.sha, branch.tip)
    kept = [c.name for c in later if c.promoted is not None and c.rejected is None]
    if kept:
        raise RepoError(
            f"{', '.join(kept)} was kept on top of {commit.name} and holds its change; reject "
            f"{kept[-1]} first"
        )


def _close_open_iteration(journal: Journal, branch: Branch, *, abandon: bool) -> None:
    """End the iteration that was cut off: it would go on against an incumbent that is no more."""
    opened = journal.last("iteration_begin")
    if opened is None or journal.last("iteration_end", opened.key) is not None:
        return
    done = {e.step for e in journal.events() if e.key == opened.key and e.event == "done" and e.step}
    committed = branch.repo.find_commit(branch.name, ITERATION_TRAILER, opened.key) is not None
    if not committed and not abandon and done - _CHEAP_STEPS:
        raise JournalError(
            f"{opened.key} was cut off and compares with what you reject; let it finish first (bakehouse "
            "bakeoff), or close it with --abandon: its runs stay in .bakehouse, but reach no lineage"
        )
    journal.append("iteration_end", opened.key, abandoned="the incumbent that it began with was rejected")


def _commit(worktree: Worktree, commit: BakeCommit, note: ReviewNote) -> Rejection:
    # What a run that was killed left half written there is written again by whoever resumes it.
    worktree.discard_changes()
    restored = _restore_recipe(worktree, commit) if commit.promoted is not None else None
    paths = [REVIEWS_FILE, *((_RECIPE, INCUMBENT_FILE) if restored is not None else ())]
    if _deprecate_entry(worktree, commit, note):
        paths.append(entry_path(str(commit.entry)))
    append_review(worktree.root, note)
    body = f"recipe.yaml is again what it was before {note.iteration}: {restored}." if restored else ""
    sha = worktree.commit(
        paths,
        subject=f"Reject {note.iteration}: {note.reason}"[:120],
        body=f"{body} Its trials, scores and report stay in the lineage.".strip(),
        trailers={
            ITERATION_TRAILER: rejection_name(note.iteration),
            "Rejects": note.commit,
            "Reason": note.reason,
            "Reviewed-by": note.by,
        },
    )
    return Rejection(note.iteration, sha, note.reason, already=False, restored=restored)


def _restore_recipe(worktree: Worktree, commit: BakeCommit) -> str | None:
    """Put recipe and incumbent back to before the commit, unless somebody changed the recipe since."""
    repo = worktree.repo
    before, after = (repo.read_file(sha, _RECIPE) for sha in (f"{commit.sha}^", commit.sha))
    if before is None or after is None or repo.read_file(worktree.head, _RECIPE) != after:
        return None
    write_text_atomic(worktree.root / _RECIPE, before + "\n")
    incumbent = repo.read_file(f"{commit.sha}^", INCUMBENT_FILE)
    if incumbent is None:
        # There was none yet: the next flywheel measures the recipe anew.
        (worktree.root / INCUMBENT_FILE).unlink(missing_ok=True)
    else:
        write_text_atomic(worktree.root / INCUMBENT_FILE, incumbent + "\n")
    return format_diff(*(TrainRecipe.from_dict(parse_yaml(text)) for text in (after, before)))


def _deprecate_entry(worktree: Worktree, commit: BakeCommit, note: ReviewNote) -> bool:
    path = worktree.root / entry_path(str(commit.entry))
    if commit.entry is None or not path.is_file():
        return False
    entry = DecideEntry.from_yaml(path)
    told = f"Rejected on {note.at[:10]} by {note.by}: {note.reason}"
    changed = dataclasses.replace(entry, lifecycle="deprecated", notes=f"{entry.notes}\n\n{told}".strip())
    write_entry(changed, path.parent, replace=True)
    return True
