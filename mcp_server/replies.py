"""What the tools answer: small typed facts, told to a program and to a reader alike."""

from __future__ import annotations

import json
import re
from typing import Any, Final, Literal

from mcp_types import CallToolResult, TextContent
from pydantic import BaseModel, ConfigDict

from tools.secret_scan import find_secrets

JobStatus = Literal["starting", "running", "succeeded", "failed", "cancelled", "lost"]
HIDDEN: Final = "[hidden: looks like a secret]"
_LINE: Final = re.compile(r"[^\n]+")
# As tools.leakage words a leak: a training row, then the judged row with its text.
_LEAK: Final = re.compile(r"(train row ('[^']*'|\"[^\"]*\")).* ~ (dev|selection|test) row .*")


class Reply(BaseModel):
    """The facts of one answer. None is unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Validated(Reply):
    """What the checks of a recipe found."""

    ok: bool
    problem: str | None = None
    recipe_digest: str | None = None
    base_model: str | None = None
    steps: int | None = None
    train_rows: int | None = None
    dev_rows: int | None = None
    selection_rows: int | None = None
    next: str


class Started(Reply):
    """A job that is on disk by now; with its result where the client waited for it as a task."""

    job_id: str
    status: JobStatus
    result: str | None = None
    next: str


class Polled(Reply):
    """A job as it is now."""

    job_id: str
    kind: str
    status: JobStatus
    ended: bool
    phase: str | None = None
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    score: float | None = None
    adapter: str | None = None
    result: str | None = None
    error: str | None = None
    log_tail: str | None = None
    poll_again_s: float | None = None
    jobs: list[str] | None = None
    next: str


class Compared(Reply):
    """The paired gain of a candidate over a base. Scores are in [0, 1]."""

    verdict: str
    reason: str
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    base_mean: float | None = None
    candidate_mean: float | None = None
    n_items: int | None = None


class Trials(Reply):
    """The newest trials, a line each: id, status, selection score, gain, hypothesis."""

    best: str | None = None
    total: int
    trials: list[str]


class Standardized(Reply):
    """What was changed in an export; nothing in one that was standard already."""

    path: str
    changes: list[str]


class Decided(Reply):
    """The corpus's answer, and what it rests on."""

    pick: str
    evidence: str
    entry: str
    created: str


class Refreshed(Reply):
    """The decisions that are stale, a line each with the reasons."""

    stale: list[str]
    fresh: int


def to_result(reply: Reply) -> CallToolResult:
    """Return a reply as structured content and as text; both hold the same facts, and no secret."""
    facts = hide_secrets(reply.model_dump(mode="json", exclude_none=True))
    return CallToolResult(content=[TextContent(type="text", text=as_text(facts))], structured_content=facts)


def as_text(facts: dict[str, Any]) -> str:
    """Return a line, or a list, for each fact."""
    return "\n".join(f"{key}: {_value(value)}" for key, value in facts.items())


def hide_secrets(value: Any) -> Any:
    """Return value with no credential in its texts, and no text of a row that judges a result."""
    if isinstance(value, str):
        return _LINE.sub(lambda line: _hide_in_line(line[0]), value)
    if isinstance(value, dict):
        return {key: hide_secrets(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [hide_secrets(entry) for entry in value]
    return value


def _hide_in_line(line: str) -> str:
    if find_secrets(line):
        return HIDDEN
    return _LEAK.sub(r"\1 ~ a \3 row, not shown here", line)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return f"\n{value}" if "\n" in value else value
    if isinstance(value, list):
        return "".join(f"\n- {_value(entry)}" for entry in value) or "none"
    return json.dumps(value, ensure_ascii=False)
