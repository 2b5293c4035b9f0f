"""The tools of a planner that reads: look-ups over its evidence, and the one that hands in the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import ValidationError, validate_call

from agent.plan import PlanContext
from agent.planners.evidence import PlannerEvidence
from agent.planners.submission import Submission, check_submission, submission_schema

if TYPE_CHECKING:
    from anthropic.lib.tools import BetaFunctionTool

__all__ = ["SUBMIT", "Desk", "make_tools"]

SUBMIT: Final = "submit_plan"
_MOST_SUBMISSIONS: Final = 2
_PAGE: Final = {"type": "integer", "description": "page, from 1"}


@dataclass
class Desk:
    """Takes submissions: the first that is whole, or the second as far as it can be used."""

    context: PlanContext
    max_cost_ratio: float
    accepted: Submission | None = None
    n_submissions: int = 0
    refusals: list[str] = field(default_factory=list)
    """Everything that was refused, for the record."""

    @property
    def is_open(self) -> bool:
        """Whether another submission would be looked at."""
        return self.accepted is None and self.n_submissions < _MOST_SUBMISSIONS

    def submit(self, data: Any) -> tuple[bool, str]:
        """Take a submission; return whether it was accepted, and what to tell the model."""
        if not self.is_open:
            return False, "a plan was handed in already; nothing more is taken"
        self.n_submissions += 1
        found = check_submission(data, self.context, max_cost_ratio=self.max_cost_ratio)
        self.refusals += found.problems
        if not found.problems or (not self.is_open and found.proposals):
            self.accepted = found
            return True, f"accepted: {len(found.proposals)} candidate(s)"
        rest = "mend it and call submit_plan once more" if self.is_open else "no further plan is taken"
        return False, "plan refused:\n" + "\n".join(
            f"- {problem}" for problem in found.problems
        ) + f"\n{rest}"


def make_tools(desk: Desk, evidence: PlannerEvidence | None) -> list[BetaFunctionTool[Any]]:
    """Return the tools that one plan is made with."""
    tools = [] if evidence is None else _reading_tools(evidence)
    return [*tools, _submit_tool(desk)]


def _reading_tools(evidence: PlannerEvidence) -> list[BetaFunctionTool[Any]]:
    def read_lineage(page: int = 1, status: str | None = None) -> str:
        return evidence.read_lineage(page=page, status=status)

    def read_dev_failures(page: int = 1, kind: str | None = None) -> str:
        return evidence.read_dev_failures(page=page, kind=kind)

    def look_up_decision(question: str, optimize_for: str, context: dict[str, str] | None = None) -> str:
        return evidence.look_up_decision(question=question, optimize_for=optimize_for, context=context or {})

    text = {"type": "string"}
    return [
        _tool(
            read_lineage,
            "Trials of this task, newest first: scores, measured and expected gains, hypotheses.",
            {"page": _PAGE, "status": {**text, "description": "only this status, such as keep or crash"}},
        ),
        _tool(
            read_dev_failures,
            "Dev rows that the incumbent answers wrongly: prompt, expected, output.",
            {"page": _PAGE, "kind": {**text, "description": "only this kind of error"}},
        ),
        _tool(
            look_up_decision,
            "What earlier bakeoffs decided on a question, with the evidence.",
            {
                "question": text,
                "optimize_for": text,
                "context": {"type": "object", "additionalProperties": text},
            },
            required=("question", "optimize_for"),
        ),
    ]


def _submit_tool(desk: Desk) -> BetaFunctionTool[Any]:
    from anthropic.lib.tools import BetaFunctionTool, ToolError

    def submit_plan(**fields: Any) -> str:
        is_accepted, answer = desk.submit(fields)
        if not is_accepted:
            raise ToolError(answer)
        return answer

    schema = submission_schema(desk.context.patch_space)
    about = "Hand in the plan: its hypothesis, and the candidates, each a patch of the incumbent recipe."
    return BetaFunctionTool(submit_plan, name=SUBMIT, description=about, input_schema=schema)


def _tool(
    function: Callable[..., str], about: str, properties: dict[str, Any], *, required: tuple[str, ...] = ()
) -> BetaFunctionTool[Any]:
    from anthropic.lib.tools import BetaFunctionTool, ToolError

    checked = validate_call(function)

    def run(**given: Any) -> str:
        try:
            return checked(**given)
        except ValidationError as err:
            # Told to the model, where the SDK would log a traceback and tell it nothing.
            lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in err.errors()]
            raise ToolError("; ".join(lines)) from err

    kind: Literal["object"] = "object"
    schema: dict[str, Any] = {"type": kind, "properties": properties, "required": list(required)}
    return BetaFunctionTool(
        run,
        name=function.__name__,
        description=about,
        input_schema={**schema, "type": kind, "additionalProperties": False},
    )
