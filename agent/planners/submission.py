"""The submission: what a model hands in as a plan, checked field by field, and why parts are refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from agent.ideas.queue import QueueItem
from agent.plan import DataRequest, Gain, PlanContext, Proposal, Sentence
from agent.planners.candidates import Candidate, CandidateFilter
from agent.planners.queue_first import propose_idea
from agent.planners.quoting import cut
from tools.errors import PatchError
from tools.patch_space import FieldRange, PatchSpace

__all__ = ["Submission", "check_submission", "describe_problems", "parse_nested", "submission_schema"]

_MOST_PROBLEMS: Final = 40
_PROBLEM_CHARS: Final = 400


def parse_nested(value: Any) -> Any:
    """Return a value, or what its JSON text holds: models now and then send a nested value as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: Annotated[dict[str, Any] | None, BeforeValidator(parse_nested)] = None
    idea: Annotated[str, Field(max_length=64)] | None = None
    hypothesis: Sentence | None = None
    expected_gain: Gain | None = None


class _Sheet(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    hypothesis: Sentence
    proposals: Annotated[tuple[Any, ...], BeforeValidator(parse_nested), Field(min_length=1, max_length=64)]
    expected_gain: Gain | None = None
    notes: Annotated[str, Field(max_length=4000)] = ""
    data_request: Annotated[DataRequest | None, BeforeValidator(parse_nested)] = None
    background_additions: Annotated[str, Field(max_length=8000)] = ""


@dataclass(frozen=True)
class Submission:
    """A plan as it was handed in: the proposals that may be tried, and a sentence for all that may not.

    The plan can be used as it stands when it has proposals, and is whole when it has no problems.
    """

    hypothesis: str = ""
    proposals: tuple[Proposal, ...] = ()
    expected_gain: float | None = None
    notes: str = ""
    data_request: DataRequest | None = None
    background_additions: str = ""
    problems: tuple[str, ...] = ()


def check_submission(data: Any, context: PlanContext, *, max_cost_ratio: float) -> Submission:
    """Return what untrusted data proposes, nothing of it applied yet."""
    try:
        sheet = _Sheet.model_validate(data)
    except ValidationError as err:
        return Submission(problems=_limit(describe_problems(err, "plan")))
    filter_ = CandidateFilter(context, max_cost_ratio)
    wanted = filter_.n_wanted()
    proposals: list[Proposal] = []
    problems: list[str] = []
    for number, entry in enumerate(sheet.proposals, start=1):
        found = _check_entry(parse_nested(entry), filter_)
        if isinstance(found, Proposal):
            proposals.append(found)
        else:
            problems += [f"proposal {number}: {problem}" for problem in found]
    if len(proposals) > wanted:
        problems.append(f"{len(proposals)} usable proposals came; at most {wanted} may be tried")
    return Submission(
        hypothesis=sheet.hypothesis,
        proposals=tuple(proposals[:wanted]),
        expected_gain=sheet.expected_gain,
        notes=sheet.notes,
        data_request=sheet.data_request,
        background_additions=sheet.background_additions,
        problems=_limit(problems),
    )


def submission_schema(space: PatchSpace) -> dict[str, Any]:
    """Return the JSON schema of a submission over a patch space."""
    gain = {"type": ["number", "null"], "description": "expected change of the mean score, in [-1, 1]"}
    patch = {
        "type": "object",
        "description": "fields of the incumbent recipe to set; name only those that change",
        "properties": {name: _field_schema(rule) for name, rule in space.ranges.items()},
        "additionalProperties": False,
    }
    entry = {
        "type": "object",
        "properties": {
            "patch": patch,
            "idea": {"type": "string", "description": "id of an idea in <queue>, in the place of a patch"},
            "hypothesis": {"type": "string"},
            "expected_gain": gain,
        },
        "required": ["hypothesis", "expected_gain"],
        "additionalProperties": False,
    }
    request = {
        "type": ["object", "null"],
        "description": "training rows that you would like to have; it joins the queue",
        "properties": {"focus": {"type": "string"}, "rows": {"type": "integer"}},
        "required": ["focus", "rows"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "hypothesis": {"type": "string", "description": "what is wrong now and what would mend it"},
            "expected_gain": gain,
            "proposals": {"type": "array", "items": entry},
            "data_request": request,
            "background_additions": {"type": "string", "description": "knowledge worth keeping, or empty"},
            "notes": {"type": "string", "description": "anything else for the people who read the plan"},
        },
        "required": ["hypothesis", "proposals"],
        "additionalProperties": False,
    }


def _check_entry(data: Any, candidates: CandidateFilter) -> Proposal | list[str]:
    try:
        entry = _Entry.model_validate(data)
    except ValidationError as err:
        return describe_problems(err, "proposal")
    item = next((one for one in candidates.context.ideas if one.id == entry.idea), None)
    if problem := _source_problem(entry, item):
        return [problem]
    space = candidates.context.patch_space
    values = space.canonical(_wanted_values(entry, item))
    if not values:
        return ["the patch names no field; name at least one"]
    if problems := space.problems(values):
        return list(problems)
    try:
        candidate = candidates.build(values)
    except PatchError as err:
        return [str(err)]
    if candidate is None:
        return ["the patch changes nothing in the incumbent"]
    if candidates.is_too_slow(candidate.patch.values()):
        return [f"costs more than {candidates.max_cost_ratio:g} times the incumbent; train less or smaller"]
    if not candidates.add(candidate):
        return ["this recipe was tried before, or stands twice in the plan"]
    return _propose(entry, item, candidate)


def _source_problem(entry: _Entry, item: QueueItem | None) -> str | None:
    if (entry.patch is None) == (entry.idea is None):
        return "give a patch, or the id of an idea in <queue>, and not both"
    if entry.idea is None:
        return None if entry.hypothesis else "hypothesis: a patch needs one"
    if item is None or item.idea.patch is None:
        return f"there is no patch {cut(entry.idea, 80)!r} waiting in <queue>"
    return None


def _wanted_values(entry: _Entry, item: QueueItem | None) -> dict[str, Any]:
    return item.idea.patch.values() if item and item.idea.patch else entry.patch or {}


def _propose(entry: _Entry, item: QueueItem | None, candidate: Candidate) -> Proposal:
    if item is None:
        return Proposal(
            patch=candidate.patch, hypothesis=str(entry.hypothesis), expected_gain=entry.expected_gain
        )
    # Whoever says what is gained is held to it.
    proposal = propose_idea(item, candidate)
    own = {"hypothesis": entry.hypothesis or proposal.hypothesis}
    if entry.expected_gain is None:
        return proposal.model_copy(update=own)
    return proposal.model_copy(update={**own, "expected_gain": entry.expected_gain, "author": None})


def _field_schema(rule: FieldRange) -> dict[str, Any]:
    kinds = {"number": "number", "whole": "integer", "flag": "boolean", "choice": "string"}
    schema: dict[str, Any] = {"description": f"{rule.about}: {rule.allowed}"}
    if rule.kind in ("subset", "layers"):
        items = {"type": "integer"} if rule.kind == "layers" else {"enum": list(rule.choices or ())}
        return schema | {"type": _nullable("array", rule), "items": items}
    return schema | {"type": _nullable(kinds[rule.kind], rule)}


def _nullable(kind: str, rule: FieldRange) -> str | list[str]:
    return [kind, "null"] if rule.nullable else kind


def describe_problems(err: ValidationError, noun: str) -> list[str]:
    """Return a sentence for each thing that is wrong with what a model sent."""
    found = []
    for error in err.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in error["loc"]) or noun
        if error["type"] == "extra_forbidden":
            found.append(f"{cut(where, 80)!r} may not be set by a plan")
        else:
            found.append(f"{cut(where, 80)}: {error['msg'].removeprefix('Value error, ')}")
    return found


def _limit(problems: list[str]) -> tuple[str, ...]:
    shown = [cut(problem, _PROBLEM_CHARS) for problem in problems[:_MOST_PROBLEMS]]
    rest = len(problems) - len(shown)
    return (*shown, f"and {rest} more") if rest > 0 else tuple(shown)
