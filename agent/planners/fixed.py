"""The fixed planner: a planned bakeoff, read from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.plan import Gain, Plan, PlanContext, Proposal, Sentence
from agent.planners.candidates import Candidate, CandidateFilter
from agent.planners.hypothesis import describe_changes
from tools.errors import PatchError, PlannerError
from tools.patch import RecipePatch, patch_from_mapping
from tools.recipe import TrainRecipe
from tools.yaml_text import parse_yaml

__all__ = ["FixedPlanner"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: RecipePatch
    hypothesis: Sentence | None = None
    expected_gain: Gain | None = None


class FixedPlanner:
    """Proposes the patches of a YAML file in their order, each once.

    The file is a list; an entry is a mapping of fields to values, or `patch:` with such a
    mapping beside `hypothesis:` and `expected_gain:`. Everything is checked when it is loaded,
    but what depends on the incumbent when it is proposed.
    """

    name = "fixed"

    def __init__(self, path: str | Path) -> None:
        """Read the file.

        Raises:
            PlannerError: it is missing, no YAML, or holds an entry that is refused; all are named.
        """
        self.path = Path(path)
        self._entries = _load(self.path)

    def plan(self, context: PlanContext) -> Plan:
        """Return the next patches that neither the lineage nor the incumbent holds yet.

        Raises:
            PlannerError: no patch of the file is left to try.
        """
        candidates = CandidateFilter(context, max_cost_ratio=float("inf"))
        wanted = candidates.n_wanted()
        taken: list[Proposal] = []
        refused: list[str] = []
        for number, entry in enumerate(self._entries, start=1):
            if len(taken) == wanted:
                break
            try:
                candidate = candidates.build(entry.patch.values())
            except PatchError as err:
                refused.append(f"entry {number}: {err}")
                continue
            if candidate is not None and candidates.add(candidate):
                taken.append(_propose(entry, candidate, context.incumbent))
        if not taken:
            raise PlannerError(self._nothing_left(refused))
        return Plan(
            planner=self.name,
            hypothesis=f"Planned comparison of {len(taken)} patches from {self.path.name[:200]}.",
            proposals=tuple(taken),
            notes="\n".join(refused)[:8000],
        )

    def _nothing_left(self, refused: list[str]) -> str:
        n_done = len(self._entries) - len(refused)
        text = (
            f"{self.path} is exhausted: of its {len(self._entries)} patches {n_done} were tried or are in use"
        )
        if refused:
            text += f", {len(refused)} do not apply ({'; '.join(refused)})"
        return text + "; add patches, or choose another planner"


def _propose(entry: _Entry, candidate: Candidate, incumbent: TrainRecipe) -> Proposal:
    text = entry.hypothesis or f"To see whether it helps to {describe_changes(incumbent, candidate.recipe)}."
    return Proposal(patch=candidate.patch, hypothesis=text[:2000], expected_gain=entry.expected_gain)


def _load(path: Path) -> tuple[_Entry, ...]:
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise PlannerError(f"no plan at {path}; write a YAML list of patches or name another file") from err
    except (OSError, ValueError) as err:
        raise PlannerError(f"{path} cannot be read as YAML: {err}") from err
    if not isinstance(data, list) or not data:
        raise PlannerError(f"{path} holds a {type(data).__name__}; a plan is a non-empty list of patches")
    entries: list[_Entry] = []
    problems: list[str] = []
    for number, entry in enumerate(data, start=1):
        try:
            entries.append(_read_entry(entry))
        except PatchError as err:
            problems.append(f"entry {number}: {err}")
    if problems:
        raise PlannerError(f"{path}: " + "; ".join(problems))
    return tuple(entries)


def _read_entry(data: Any) -> _Entry:
    if not isinstance(data, dict) or "patch" not in data:
        return _Entry(patch=patch_from_mapping(data))
    # Checked alone first, so that a problem is told as for any other patch.
    patch_from_mapping(data["patch"])
    try:
        return _Entry.model_validate(data)
    except ValidationError as err:
        lines = [f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}" for error in err.errors()]
        raise PatchError("; ".join(lines)) from err
