"""A finding of an audit: what is wrong with one row, how badly, and what should stand in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from agent.data_work.gate import RowGate, leak_words, prompt_key
from tools.leakage import Leak
from tools.rows import Row

__all__ = ["SEVERITIES", "Finding", "Severity", "is_at_least", "local_findings", "read_findings"]

Severity = Literal["ok", "info", "warning", "error"]
SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)
_ISSUE_CHARS: Final = 400


@dataclass(frozen=True)
class Finding:
    """What an audit says of one row."""

    index: int
    """Number of the row in its file, from 1."""
    severity: Severity
    issue: str = ""
    suggested_fix: Mapping[str, Any] | None = None
    """An object as a teacher writes rows; it has passed no check yet."""
    found_by: Literal["check", "teacher"] = "teacher"


def is_at_least(severity: Severity, least: Severity) -> bool:
    """Say whether a severity is as bad as another, or worse."""
    return SEVERITIES.index(severity) >= SEVERITIES.index(least)


def local_findings(rows: Sequence[Row], gate: RowGate, tied: Mapping[str, Leak]) -> dict[int, Finding]:
    """Return what can be said without a teacher: answers that do not score, repetitions, leaks."""
    counts = Counter(prompt_key(row) for row in rows)
    seen: set[str] = set()
    found = {}
    for index, row in enumerate(rows, start=1):
        refusal = gate.answer_problem(row)
        again = prompt_key(row) in seen
        seen.add(prompt_key(row))
        if row.id in tied:
            issue = f"{leak_words(tied[row.id])}; take it out"
            found[index] = Finding(index, "error", issue, found_by="check")
        elif refusal is not None:
            found[index] = Finding(index, "error", refusal.detail, found_by="check")
        elif again:
            issue = f"asks what an earlier row asks ({counts[prompt_key(row)]} rows do)"
            found[index] = Finding(index, "warning", issue, found_by="check")
    return found


def read_findings(objects: Iterable[Mapping[str, Any]], asked: Iterable[int]) -> dict[int, Finding]:
    """Return the findings of a reply, by the row's number; what makes no sense is left out.

    Args:
        asked: Numbers of the rows that were asked about: a finding on another row is no finding.
    """
    allowed = set(asked)
    found: dict[int, Finding] = {}
    for item in objects:
        index, severity = item.get("index"), item.get("severity")
        if isinstance(index, bool) or index not in allowed or severity not in SEVERITIES:
            continue
        assert isinstance(index, int)
        fix = item.get("suggested_fix")
        # The first word on a row stands: a reply that contradicts itself is not trusted twice.
        found.setdefault(
            index, Finding(index, severity, _issue(item.get("issue")), fix if isinstance(fix, dict) else None)
        )
    return found


def _issue(value: Any) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return text if len(text) <= _ISSUE_CHARS else text[: _ISSUE_CHARS - 3] + "..."
