"""What references may name: the trials, decisions and documents that a workspace really has."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from agent.ideas.idea import Reference
from agent.planners.evidence import PlannerEvidence
from agent.planners.quoting import cut
from tools.decisions import load_entries
from tools.errors import TaskError
from tools.workspace import Workspace

__all__ = ["DOCUMENTS", "KnownSources", "find_sources"]

DOCUMENTS: Final = (
    "mission.md",
    "BACKGROUND.md",
    "system_prompt.md",
    "task.yaml",
    "recipe.yaml",
    "AGENT_CONTEXT.md",
    "PLAN.md",
)
"""Files of a workspace that an idea may rest on."""


@dataclass(frozen=True)
class KnownSources:
    """Names that a reference of this workspace's own may have."""

    trials: frozenset[str]
    decisions: frozenset[str]
    documents: frozenset[str]

    def problem(self, reference: Reference) -> str | None:
        """Return why a reference cannot stand, or None. Papers and addresses are taken as text."""
        known = {"trial": self.trials, "decision": self.decisions, "doc": self.documents}.get(reference.kind)
        if known is None or reference.ref in known:
            return None
        near = get_close_matches(reference.ref, sorted(known), n=1)
        hint = f"; is {near[0]!r} meant?" if near else ""
        return f"there is no {reference.kind} {cut(reference.ref, 80)!r} here{hint}"


def find_sources(workspace: Workspace, evidence: PlannerEvidence | None) -> KnownSources:
    """Return what references may name, a trial also without its seed."""
    trials = {trial.exp_id for trial in evidence.trials} if evidence else set()
    dirs = evidence.entry_dirs if evidence else None
    return KnownSources(
        trials=frozenset(trials | {name.rpartition("-s")[0] for name in trials} - {""}),
        decisions=frozenset(entry.slug for entry in load_entries(dirs=dirs)),
        documents=frozenset(name for name in DOCUMENTS if _is_file(workspace, name)),
    )


def _is_file(workspace: Workspace, name: str) -> bool:
    try:
        return workspace.inside(name).is_file()
    except TaskError:
        # A link out of the workspace is no document of it.
        return False
