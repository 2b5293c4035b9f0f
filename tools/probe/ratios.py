"""The comparison of two probe reports: each metric as a ratio to the baseline's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Final, Literal

from tools.errors import ProbeError
from tools.probe.rows import ProbeRow, summarize_rows
from tools.probe.think import count_char_quarters

if TYPE_CHECKING:
    from tools.probe.report import ProbeReport

__all__ = [
    "DEFAULT_COMPARE_THRESHOLDS",
    "CompareResult",
    "CompareRow",
    "CompareThresholds",
    "compare_reports",
    "compare_values",
]

Status = Literal["PASS", "FAIL", "skip"]

# 9 of 15 is exactly 90% of 10 of 15, and a little less in binary floating point.
_ROUNDING: Final = 1e-9


@dataclass(frozen=True)
class CompareThresholds:
    """The share of the baseline that each metric must reach to pass."""

    think_presence_rate: float = 0.90
    think_token_length: float = 0.75
    answered: float = field(default=0.90, kw_only=True)
    """Share that must have been answered, of the questions put to both that the baseline answered."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not (math.isfinite(value) and value >= 0):
                raise ProbeError(f"threshold {item.name} is {value!r}; a finite number, 0 or more, is needed")

    def of_metrics(self) -> dict[str, float]:
        """Return the bar of each metric, by its name in a summary."""
        return {
            "think_presence_rate": self.think_presence_rate,
            "think_token_length": self.think_token_length,
        }


DEFAULT_COMPARE_THRESHOLDS: Final = CompareThresholds()


@dataclass(frozen=True)
class CompareRow:
    """One metric. The status is skip where the baseline is 0, so that there is no ratio."""

    metric: str
    baseline: float | None
    current: float | None
    ratio: float | None
    threshold: float
    status: str


@dataclass(frozen=True)
class CompareResult:
    """How a current report stands to a baseline, over the questions that both answered."""

    rows: tuple[CompareRow, ...]
    all_pass: bool
    """At least one metric was measured, none failed, and enough questions were answered."""
    baseline_label: str
    current_label: str
    budget_normalized: bool
    budget_cap: int | None
    excluded_qids: tuple[str, ...]
    """Chains longer than the smaller budget in either report, left out of both."""
    per_category: Mapping[str, Mapping[str, float | None]]
    n_paired: int = field(default=0, kw_only=True)
    """Questions compared: those that both sides answered."""
    unpaired_qids: tuple[str, ...] = field(default=(), kw_only=True)
    """Asked on one side only."""
    failed_qids: tuple[str, ...] = field(default=(), kw_only=True)
    """No response came on one side or both."""
    truncated_qids: tuple[str, ...] = field(default=(), kw_only=True)
    """Chains without an end, on one side or both: the budget was too small to see them whole."""
    nothing_to_lose: bool = field(default=False, kw_only=True)
    """Both answered the same questions, and the baseline began no chain in any: nothing can have fallen."""


def compare_reports(
    current: ProbeReport,
    baseline: ProbeReport,
    *,
    normalize_budget: bool = True,
    thresholds: CompareThresholds | None = None,
    baseline_label: str | None = None,
    current_label: str | None = None,
) -> CompareResult:
    """Compare two reports over the questions that both answered; see `ProbeReport.compare`."""
    bars = thresholds or DEFAULT_COMPARE_THRESHOLDS
    cap, excluded = _budget(current, baseline) if normalize_budget else (None, frozenset())
    before, after = (_Side.of(report, excluded) for report in _counted_alike(baseline, current))
    shared = before.answered & after.answered
    rows = tuple(
        compare_values(metric, before.metric(metric, shared), after.metric(metric, shared), threshold)
        for metric, threshold in bars.of_metrics().items()
    )
    due = before.answered & after.asked
    enough = bool(shared) and len(shared) >= bars.answered * len(due) - _ROUNDING
    return CompareResult(
        rows=rows,
        all_pass=enough and _all_pass(rows),
        baseline_label=baseline_label or baseline.model,
        current_label=current_label or current.model,
        budget_normalized=cap is not None,
        budget_cap=cap,
        excluded_qids=tuple(sorted(excluded)),
        per_category=_per_category(before.rows, after.rows),
        n_paired=len(shared),
        unpaired_qids=tuple(sorted(before.asked ^ after.asked)),
        failed_qids=tuple(sorted((before.asked - before.answered) | (after.asked - after.answered))),
        truncated_qids=tuple(sorted({row.qid for row in (*before.rows, *after.rows) if row.truncated})),
        nothing_to_lose=enough and not any(row.has_think or row.truncated for row in before.rows),
    )


@dataclass(frozen=True)
class _Side:
    """A report's rows within the budget."""

    rows: tuple[ProbeRow, ...]
    asked: frozenset[str]
    answered: frozenset[str]

    @classmethod
    def of(cls, report: ProbeReport, excluded: frozenset[str]) -> _Side:
        rows = tuple(row for row in report.rows if row.qid not in excluded)
        answered = frozenset(row.qid for row in rows if row.error is None)
        return cls(rows, frozenset(row.qid for row in rows), answered)

    def metric(self, name: str, shared: frozenset[str]) -> float:
        value = getattr(summarize_rows(row for row in self.rows if row.qid in shared), name)
        assert isinstance(value, float)
        return value


def compare_values(metric: str, baseline: float, current: float, threshold: float) -> CompareRow:
    """Return the row of one metric. What is not a finite number fails; it never passes or is skipped."""
    if not (math.isfinite(baseline) and math.isfinite(current)):
        return CompareRow(metric, baseline, current, None, threshold, "FAIL")
    if baseline == 0:
        return CompareRow(metric, baseline, current, None, threshold, "skip")
    ratio = current / baseline
    status: Status = "PASS" if ratio >= threshold - _ROUNDING else "FAIL"
    return CompareRow(metric, baseline, current, ratio, threshold, status)


def _all_pass(rows: Sequence[CompareRow]) -> bool:
    statuses = {row.status for row in rows}
    return "PASS" in statuses and "FAIL" not in statuses


def _budget(current: ProbeReport, baseline: ProbeReport) -> tuple[int | None, frozenset[str]]:
    """Return the budget that both are held to, if they need one, and the questions it leaves out."""
    # A report that was cut down to its budget before lacks questions that the other still has.
    excluded = {*current.excluded_qids, *baseline.excluded_qids}
    cap = min(current.max_new_tokens, baseline.max_new_tokens)
    if current.max_new_tokens == baseline.max_new_tokens and not excluded:
        return None, frozenset()
    excluded.update(
        row.qid
        for report in (baseline, current)
        for row in report.rows
        if row.has_think and row.chain_tokens > cap
    )
    return cap, frozenset(excluded)


def _counted_alike(baseline: ProbeReport, current: ProbeReport) -> tuple[ProbeReport, ProbeReport]:
    """Return both with lengths of one unit: counts of two tokenizers are not comparable."""
    if baseline.counted_by == current.counted_by:
        return baseline, current
    return _recounted(baseline), _recounted(current)


def _recounted(report: ProbeReport) -> ProbeReport:
    rows = [
        replace(row, think_n_tok=count_char_quarters(row.think_text)) if row.has_think else row
        for row in report.rows
    ]
    return replace(report, rows=rows)


def _per_category(
    before: Sequence[ProbeRow], after: Sequence[ProbeRow]
) -> Mapping[str, Mapping[str, float | None]]:
    sides = (before, after)
    names = sorted({row.category for rows in sides for row in rows})
    found: dict[str, dict[str, float | None]] = {}
    for name in names:
        rates = [summarize_rows(row for row in rows if row.category == name) for rows in sides]
        presence = [rate.think_presence_rate if rate.n else None for rate in rates]
        found[name] = {"baseline_presence": presence[0], "current_presence": presence[1]}
    return found
