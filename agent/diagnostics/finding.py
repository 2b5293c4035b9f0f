"""A finding: what a diagnostic saw, on what it rests, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Code", "Finding", "describe_findings"]

Code = Literal[
    "stuck_at_zero",
    "base_below_random",
    "method_exhausted",
    "same_score",
    "trained_on_held_out",
    "eval_in_synthetic",
    "conditioned_on_judged",
    "checkpoint_not_trained",
    "objective_mismatch",
    "implausibly_fast",
]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that no further setting will mend."""

    code: Code
    summary: str
    advice: str
    evidence: tuple[str, ...] = ()
    """Trials, rows or files that it rests on."""

    def __str__(self) -> str:
        return f"{self.code}: {self.summary}. {self.advice}."


def describe_findings(findings: Iterable[Finding]) -> str:
    """Return a line a finding, or that there is none."""
    return "\n".join(str(finding) for finding in findings) or "nothing stands out"
