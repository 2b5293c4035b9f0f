"""Details of an iteration for its reviewer: what changed, on what evidence, and where the plots lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.background_notes import ADDITIONS_FILE, parse_additions
from agent.review.commits import BakeCommit, Branch, read_entry
from agent.score_sets import newest
from tools.decisions import DecideEntry
from tools.errors import DecideError, RecipeError
from tools.gitcommand import git_text
from tools.patch import diff_recipes
from tools.recipe import TrainRecipe
from tools.workspace import Workspace
from tools.yaml_text import parse_yaml

__all__ = ["Finding", "ReviewDetails", "read_details"]


@dataclass(frozen=True)
class Finding:
    """What was found on one candidate."""

    candidate: str
    verdict: str
    changes: tuple[str, ...]
    evidence: str
    secondary: tuple[str, ...] = ()
    """What it costs beside what it scores; no verdict rests on it."""


@dataclass(frozen=True)
class ReviewDetails:
    """All that a reviewer needs of one iteration."""

    commit: BakeCommit
    recipe_changes: tuple[str, ...]
    findings: tuple[Finding, ...]
    provenance: Mapping[str, Any] | None
    report: str
    """The page: a file, or where git has it."""
    plots: str
    files: tuple[str, ...]
    """What the commit holds, a line a file."""
    background_additions: str = ""
    """What the iteration's planner would add to BACKGROUND.md; nobody has checked it."""


def read_details(workspace: Workspace, branch: Branch, commit: BakeCommit) -> ReviewDetails:
    """Read a commit of the bakeoff branch from git alone; the worktree is not needed."""
    entry = _entry(branch, commit)
    stat = ("show", "--no-color", "--no-show-signature", "--no-ext-diff", "--stat=110", "--format=")
    return ReviewDetails(
        commit=commit,
        recipe_changes=_recipe_changes(branch, commit),
        findings=() if entry is None else _findings(entry),
        provenance=entry.provenance.to_dict() if entry and entry.provenance else None,
        report=_locate(workspace, commit, "report.html"),
        plots=_locate(workspace, commit, "report.png"),
        files=tuple(git_text(branch.repo.root, *stat, commit.sha).splitlines()),
        background_additions=_additions(branch, commit),
    )


def _additions(branch: Branch, commit: BakeCommit) -> str:
    page = branch.repo.read_file(commit.sha, ADDITIONS_FILE)
    found = [] if page is None else [one for one in parse_additions(page) if one.iteration == commit.name]
    return "\n".join(one.text for one in found)


def _entry(branch: Branch, commit: BakeCommit) -> DecideEntry | None:
    try:
        return None if commit.entry is None else read_entry(branch.repo, commit.sha, commit.entry)
    except DecideError:
        # The commit's own `problem` says so.
        return None


def _findings(entry: DecideEntry) -> tuple[Finding, ...]:
    found = []
    for one in entry.findings:
        if "candidate" in one.extra:
            changes, secondary = one.extra.get("changes"), one.extra.get("secondary")
            found.append(
                Finding(
                    candidate=str(one.extra["candidate"]),
                    verdict=str(one.extra.get("verdict", "unknown")),
                    changes=tuple(map(str, changes)) if isinstance(changes, list) else (),
                    evidence=one.evidence,
                    secondary=tuple(map(str, secondary)) if isinstance(secondary, list) else (),
                )
            )
    return tuple(found)


def _recipe_changes(branch: Branch, commit: BakeCommit) -> tuple[str, ...]:
    texts = [branch.repo.read_file(sha, "recipe.yaml") for sha in (f"{commit.sha}^", commit.sha)]
    if None in texts:
        return ("recipe.yaml is not in both commits",)
    try:
        before, after = (TrainRecipe.from_dict(parse_yaml(str(text))) for text in texts)
    except (RecipeError, ValueError) as err:
        return (f"recipe.yaml cannot be compared: {err}",)
    return tuple(str(change) for change in diff_recipes(before, after))


def _locate(workspace: Workspace, commit: BakeCommit, name: str) -> str:
    places = (
        workspace.reports_dir / commit.name / name,
        newest(workspace).lineage_dir / commit.name / name,
        workspace.lineage_dir / commit.name / name,
    )
    found: Path | None = next((path for path in places if path.is_file()), None)
    return f"git show {commit.sha[:12]}:./lineage/{commit.name}/{name}" if found is None else str(found)
