"""Proposals: what a model or a file suggests, checked field by field before it may wait in the queue."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from agent.ideas.idea import Idea, Reference
from agent.ideas.known import KnownSources
from agent.plan import DataRequest, Gain, PlanContext, Sentence
from agent.planners.candidates import CandidateFilter
from agent.planners.quoting import cut
from agent.planners.submission import describe_problems, parse_nested
from tools.errors import PatchError

__all__ = ["MOST_PROPOSALS", "CheckedProposals", "Refused", "check_proposals"]

MOST_PROPOSALS: Final = 32
"""Of one reply or file; what comes after is not looked at."""
_SHOWN_CHARS: Final = 600


class _Sheet(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    hypothesis: Sentence
    expected_gain: Gain
    patch: Annotated[dict[str, Any] | None, BeforeValidator(parse_nested)] = None
    data_request: Annotated[DataRequest | None, BeforeValidator(parse_nested)] = None
    references: Annotated[
        tuple[Reference, ...], BeforeValidator(parse_nested), Field(min_length=1, max_length=12)
    ]


@dataclass(frozen=True)
class Refused:
    """A proposal that may not be tried."""

    proposal: str
    """What was proposed, as JSON, cut to a length."""
    problems: tuple[str, ...]

    @property
    def reason(self) -> str:
        return "; ".join(self.problems)


@dataclass(frozen=True)
class CheckedProposals:
    """Proposals, those that may be tried apart from those that may not."""

    ideas: tuple[Idea, ...]
    refused: tuple[Refused, ...]


def check_proposals(
    proposals: Sequence[Any], context: PlanContext, sources: KnownSources, *, max_cost_ratio: float
) -> CheckedProposals:
    """Check untrusted proposals in their order; nothing is applied.

    A patch must stay inside the patch space, make a recipe that was never tried and cost at most
    max_cost_ratio times the incumbent. What waits in the queue is not proposed again.
    """
    desk = _Desk(context, sources, CandidateFilter(context, max_cost_ratio))
    for proposal in proposals[:MOST_PROPOSALS]:
        desk.take(proposal)
    if len(proposals) > MOST_PROPOSALS:
        text = f"{len(proposals)} proposals came; {MOST_PROPOSALS} at a time are looked at"
        desk.refused.append(Refused("", (text,)))
    return CheckedProposals(tuple(desk.ideas), tuple(desk.refused))


class _Desk:
    def __init__(self, context: PlanContext, sources: KnownSources, candidates: CandidateFilter) -> None:
        self.context, self.sources, self.candidates = context, sources, candidates
        self.ideas: list[Idea] = []
        self.refused: list[Refused] = []
        self._known = {item.idea.key: item.id for item in context.ideas}

    def take(self, proposal: Any) -> None:
        found = self._check(proposal)
        if isinstance(found, Idea):
            self._known[found.key] = "another of these proposals"
            self.ideas.append(found)
        else:
            self.refused.append(Refused(_shown(proposal), tuple(found)))

    def _check(self, proposal: Any) -> Idea | list[str]:
        try:
            sheet = _Sheet.model_validate(proposal)
            problems = [
                problem for reference in sheet.references if (problem := self.sources.problem(reference))
            ]
            if (sheet.patch is None) == (sheet.data_request is None):
                problems.append("give either a patch or a data_request")
            if problems:
                return problems
            idea = Idea(
                hypothesis=sheet.hypothesis,
                expected_gain=sheet.expected_gain,
                references=sheet.references,
                **self._content(sheet),
            )
        except ValidationError as err:
            return describe_problems(err, "proposal")
        except PatchError as err:
            return [str(err)]
        if idea.key in self._known:
            return [f"{self._known[idea.key]} asks for the same"]
        return idea

    def _content(self, sheet: _Sheet) -> dict[str, Any]:
        if sheet.patch is None:
            return {"data_request": sheet.data_request}
        values = self.context.patch_space.canonical(sheet.patch)
        problems = self.context.patch_space.problems(values)
        if problems or not values:
            raise PatchError("; ".join(problems) or "the patch names no field; name at least one")
        candidate = self.candidates.build(values)
        if candidate is None:
            raise PatchError("the patch changes nothing in the incumbent")
        if self.candidates.is_too_slow(candidate.patch.values()):
            ratio = f"{self.candidates.max_cost_ratio:g}"
            raise PatchError(f"costs more than {ratio} times the incumbent; train less or smaller")
        if not self.candidates.add(candidate):
            raise PatchError("this recipe was tried before, or stands twice among the proposals")
        return {"patch": candidate.patch}


def _shown(proposal: Any) -> str:
    try:
        return cut(json.dumps(proposal, ensure_ascii=False, default=str), _SHOWN_CHARS)
    except (ValueError, RecursionError):
        return cut(repr(type(proposal)), _SHOWN_CHARS)
