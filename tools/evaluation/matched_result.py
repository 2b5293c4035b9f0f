"""What a comparison of two rollouts found, as data and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tools.evaluation.group_stats import GroupStats, percent
from tools.evaluation.metrics import format_number

__all__ = ["Interval", "MatchedBaseComparisonResult", "listed", "named"]

_NAMED_TASKS: Final = 10
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class MatchedBaseComparisonResult:
    """Both rollouts on the tasks that they share, and the candidate less the base.

    overall_delta holds delta_task_pp, delta_assertion_pp (percentage points), delta_mean_turns
    and delta_mean_wall; overall_interval the interval of each, by the same keys. A row of
    per_group or per_kind holds both percentages, their delta, its interval and n. What nothing
    is known about is None. Tasks that one rollout has and the other lacks are in no number;
    unmatched_baseline and unmatched_candidate name them.
    """

    baseline: GroupStats
    candidate: GroupStats
    overall_delta: dict[str, float | None]
    per_group: list[dict[str, Any]]
    per_kind: list[dict[str, Any]]
    overall_interval: dict[str, Interval | None] = field(default_factory=dict)
    unmatched_baseline: tuple[str, ...] = ()
    unmatched_candidate: tuple[str, ...] = ()
    n_tasks: int = 0
    level: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, unrounded."""
        return {
            "baseline": self.baseline.to_dict(),
            "candidate": self.candidate.to_dict(),
            "overall_delta": dict(self.overall_delta),
            "overall_interval": {key: listed(pair) for key, pair in self.overall_interval.items()},
            "per_group": [dict(row) for row in self.per_group],
            "per_kind": [dict(row) for row in self.per_kind],
            "unmatched_baseline": list(self.unmatched_baseline),
            "unmatched_candidate": list(self.unmatched_candidate),
            "n_tasks": self.n_tasks,
            "level": self.level,
        }

    def report(self) -> str:
        """Return the comparison in Markdown, numbers rounded."""
        lines = ["### Matched-base comparison", "", *self._overall_table()]
        lines += ["", f"{self.n_tasks} tasks in both; {100 * self.level:g}% intervals, paired by task."]
        for side, ids in (("base", self.unmatched_baseline), ("candidate", self.unmatched_candidate)):
            if ids:
                lines += ["", f"**Only the {side} has {len(ids)} tasks, left out:** {named(ids)}"]
        for side, stats in (("base", self.baseline), ("candidate", self.candidate)):
            if stats.n_ungraded:
                lines += [
                    "",
                    f"**{stats.n_ungraded} tasks of the {side} have no grade** and count as failed.",
                ]
        if self.per_group:
            lines += ["", "**Per group**", "", *_group_table(self.per_group)]
        if self.per_kind:
            lines += ["", "**Per assertion kind**", "", *_kind_table(self.per_kind)]
        return "\n".join(lines)

    def _overall_table(self) -> list[str]:
        base, candidate = self.baseline, self.candidate
        rows = [
            ("task pass", _share(base.n_passed, base.n), _share(candidate.n_passed, candidate.n)),
            ("per-assertion", _assertions(base), _assertions(candidate)),
            ("mean turns", format_number(base.mean_turns), format_number(candidate.mean_turns)),
            ("mean wall (s)", format_number(base.mean_wall), format_number(candidate.mean_wall)),
        ]
        lines = ["| metric | baseline | candidate | Δ | interval |", "|---|---:|---:|---:|---:|"]
        for (name, before, after), (key, delta) in zip(rows, self.overall_delta.items(), strict=True):
            digits, unit = (1, " pp") if key.endswith("_pp") else (2, "")
            shown = format_number(delta, digits, sign=True, unit=unit)
            interval = _shown(self.overall_interval.get(key), digits)
            lines.append(f"| {name} | {before} | {after} | {shown} | {interval} |")
        return lines


def _assertions(stats: GroupStats) -> str:
    return _share(stats.n_assertions_passed, stats.n_assertions_total)


def _share(part: int, whole: int) -> str:
    return f"{part}/{whole} ({format_number(percent(part, whole), 1, unit='%')})"


def listed(pair: Interval | None) -> list[float] | None:
    """Return an interval as JSON has it."""
    return None if pair is None else list(pair)


def _shown(pair: Sequence[float] | None, digits: int = 1) -> str:
    return "—" if pair is None else f"[{pair[0]:+.{digits}f}, {pair[1]:+.{digits}f}]"


def named(ids: Sequence[str]) -> str:
    """Return some of the ids and the number of the rest."""
    more = f" and {len(ids) - _NAMED_TASKS} more" if len(ids) > _NAMED_TASKS else ""
    return (", ".join(task_id or "(no task_id)" for task_id in ids[:_NAMED_TASKS]) or "none") + more


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _group_table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| group | n | base task% | cand task% | Δ pp | interval "
        "| base asrt% | cand asrt% | Δ pp | interval |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [_cell(row["group"]), str(row["n"])]
        for kind in ("task", "assertion"):
            cells += [
                format_number(row[f"{side}_{kind}_pct"], 1, unit="%") for side in ("baseline", "candidate")
            ]
            cells += [
                format_number(row[f"delta_{kind}_pp"], 1, sign=True),
                _shown(row[f"interval_{kind}_pp"]),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _kind_table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = ["| kind | base | candidate | Δ pp | interval |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        both = [format_number(row[f"{side}_pct"], 1, unit="%") for side in ("baseline", "candidate")]
        delta = format_number(row["delta_pp"], 1, sign=True)
        lines.append(f"| {' | '.join([_cell(row['kind']), *both, delta, _shown(row['interval_pp'])])} |")
    return lines
