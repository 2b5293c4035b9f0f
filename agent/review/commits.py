"""Commits of the bakeoff branch as a reviewer sees them: decided what, by how much, and rejected or not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from agent.incumbent import INCUMBENT
from tools.checkout import Repo
from tools.decisions import DecideEntry
from tools.errors import DecideError, RepoError
from tools.gitcommand import git_text
from tools.repo import ITERATION_TRAILER
from tools.task import Task
from tools.yaml_text import parse_yaml

__all__ = [
    "BakeCommit",
    "Branch",
    "entry_path",
    "find_iteration",
    "list_commits",
    "open_branch",
    "pending_commits",
    "read_entry",
    "rejection_name",
]

Kind = Literal["iteration", "rejection", "other"]

_ITERATION: Final = re.compile(r"[iv]\d{4,}\Z")
"""Of an iteration, or of a re-run (v), which is reviewed alike but changes no recipe."""
_RERUN: Final = "v"
_REJECTION: Final = "reject-"


@dataclass(frozen=True)
class Branch:
    """The bakeoff branch of a workspace."""

    repo: Repo
    name: str
    tip: str


@dataclass(frozen=True)
class BakeCommit:
    """One commit of the bakeoff branch. What its entry does not say is None."""

    name: str
    """The iteration's id, `reject-<id>`, or the commit's short id."""
    kind: Kind
    sha: str
    at: str
    subject: str
    planner: str | None = None
    entry: str | None = None
    """Slug of the decide entry."""
    decision: str | None = None
    promoted: str | None = None
    """The candidate that became the incumbent."""
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    rejected: str | None = None
    """Why a person rejected it; None where nobody did."""
    problem: str | None = None
    """Why the evidence could not be read."""

    @property
    def rejects(self) -> str | None:
        """The iteration that this commit takes back."""
        return self.name.removeprefix(_REJECTION) if self.kind == "rejection" else None


def open_branch(repo: Repo, task: Task) -> Branch:
    """Return the bakeoff branch of a task.

    Raises:
        RepoError: there is none yet.
    """
    name = f"bakehouse/{task.name}"
    tip = repo.branch_tip(name)
    if tip is None:
        raise RepoError(
            f"there is no branch {name}, so nothing to review: run `bakehouse bakeoff` first, or fetch the "
            f"branch from where it ran (git branch {name} origin/{name})"
        )
    return Branch(repo, name, tip)


def pending_commits(branch: Branch) -> tuple[BakeCommit, ...]:
    """Return the commits that the user's HEAD lacks, oldest first."""
    return list_commits(branch, "HEAD", branch.tip)


def list_commits(branch: Branch, older: str | None, newer: str) -> tuple[BakeCommit, ...]:
    """Return what newer contains and older does not, oldest first."""
    span = newer if older is None else f"{older}..{newer}"
    return tuple(_describe(branch, row) for row in _rows(branch.repo, "--topo-order", "--reverse", span))


def find_iteration(branch: Branch, iteration_id: str) -> BakeCommit:
    """Return the commit of an iteration, merged or not.

    Raises:
        RepoError: the branch has none of that name.
    """
    sha = None
    if _ITERATION.match(iteration_id):
        sha = branch.repo.find_commit(branch.name, ITERATION_TRAILER, iteration_id)
    if sha is None:
        names = [commit.name for commit in pending_commits(branch) if commit.kind == "iteration"]
        raise RepoError(
            f"{branch.name} has no iteration {iteration_id[:80]!r}; not merged yet: "
            f"{', '.join(names) or 'none'}"
        )
    (row,) = _rows(branch.repo, "--max-count=1", sha)
    return _describe(branch, row)


def rejection_name(iteration_id: str) -> str:
    """Return the name that the commit of an iteration's rejection carries."""
    return f"{_REJECTION}{iteration_id}"


def entry_path(slug: str) -> str:
    """Return where an entry lies in a workspace."""
    return f"decide-entries/{slug}.yaml"


def read_entry(repo: Repo, sha: str, slug: str) -> DecideEntry:
    """Return a decide entry as a commit has it.

    Raises:
        DecideError: the commit has none of that name, or it is malformed.
    """
    text = repo.read_file(sha, entry_path(slug))
    if text is None:
        raise DecideError(f"commit {sha[:12]} holds no {entry_path(slug)}")
    try:
        data = parse_yaml(text)
    except ValueError as err:
        raise DecideError(f"{entry_path(slug)} of commit {sha[:12]} is no YAML: {err}") from err
    if not isinstance(data, dict):
        raise DecideError(f"{entry_path(slug)} of commit {sha[:12]} is no mapping")
    return DecideEntry.from_dict(data)


def _rows(repo: Repo, *arguments: str) -> Iterable[list[str]]:
    output = git_text(
        repo.root,
        *("-c", "trailer.separators=:", "log", "--no-show-signature", "--no-color"),
        "--format=%H%x1f%cI%x1f%s%x1f%(trailers:only,unfold)%x1e",
        *arguments,
        "--",
    )
    return [row.strip("\n").split("\x1f") for row in output.split("\x1e") if row.strip()]


def _describe(branch: Branch, row: list[str]) -> BakeCommit:
    sha, at, subject, trailer_text = row
    trailers = dict(line.partition(": ")[::2] for line in trailer_text.splitlines())
    name = trailers.get(ITERATION_TRAILER, sha[:12])
    if name.startswith(_REJECTION):
        return BakeCommit(name, "rejection", sha, at, subject, decision=trailers.get("Reason"))
    if not _ITERATION.match(name):
        return BakeCommit(name, "other", sha, at, subject)
    commit = BakeCommit(
        name,
        "iteration",
        sha,
        at,
        subject,
        planner=trailers.get("Planner"),
        entry=trailers.get("Decision"),
        rejected=_rejection_reason(branch, name),
    )
    try:
        return _with_evidence(commit, read_entry(branch.repo, sha, str(commit.entry)))
    except DecideError as err:
        return replace(commit, problem=str(err))


def _with_evidence(commit: BakeCommit, entry: DecideEntry) -> BakeCommit:
    found = entry.provenance
    low, high = (found.interval if found else None) or (None, None)
    pick = entry.findings[0].pick
    return replace(
        commit,
        decision=entry.findings[0].evidence or entry.notes,
        promoted=None if pick == INCUMBENT or commit.name.startswith(_RERUN) else pick,
        gain=found.effect if found else None,
        low=low,
        high=high,
        level=found.level if found else None,
    )


def _rejection_reason(branch: Branch, iteration_id: str) -> str | None:
    sha = branch.repo.find_commit(branch.name, ITERATION_TRAILER, rejection_name(iteration_id))
    return None if sha is None else branch.repo.trailers(sha).get("Reason", "no reason is recorded")
