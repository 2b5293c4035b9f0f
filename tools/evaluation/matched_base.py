"""Two rollouts over the same held-out tasks: what the candidate gains over the base."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.errors import EvidenceError
from tools.evaluation.group_stats import GradedTask, GroupStats, count_tasks, percent, read_task
from tools.evaluation.matched_result import MatchedBaseComparisonResult, listed, named
from tools.evaluation.paired_ratio import Part, RatioGain, ratio_gain
from tools.evaluation.records import load_records

__all__ = ["GroupStats", "MatchedBaseComparison", "MatchedBaseComparisonResult"]

Rows = Iterable[dict[str, Any]] | str | Path


def synth_persona(task_id: str) -> str:
    """Return the persona of `synth-<persona>-NN`, which may hold hyphens; other ids as they are."""
    parts = task_id.split("-")
    return "-".join(parts[1:-1]) if len(parts) > 2 else task_id


@dataclass
class MatchedBaseComparison:
    """Compares two rollouts task by task.

    A rollout is a sequence of records, or a JSONL file of them: task_id, final_grade ({passed,
    n_passed, n_total, assertions: [{kind, passed}]}), stopped, n_turns, wall_seconds. A task may
    come several times, once per sample; its samples then share one place in the pairing.

    Args:
        group_extractor: Returns a task's group from its id; None for no groups.
        level: Two-sided confidence of each interval. They are for reading side by side, and not
            corrected for their number.
    """

    group_extractor: Callable[[str], str] | None = field(default=synth_persona)
    level: float = 0.95

    def stats(self, rows: Rows) -> GroupStats:
        """Count one rollout. Entries that are no records are left out and counted."""
        records = load_records(rows)
        tasks = [read_task(row) for row in records.rows]
        return count_tasks(tasks, self.group_extractor, n_malformed=records.n_malformed)

    def compare(self, baseline: Rows, candidate: Rows) -> MatchedBaseComparisonResult:
        """Compare the two on the tasks that both have.

        Raises:
            EvidenceError: they have no task in common, or level is outside (0, 1).
        """
        if not 0.0 < self.level < 1.0:
            raise EvidenceError(f"level is {self.level!r}; allowed: above 0 and below 1, e.g. 0.95")
        before, after = load_records(baseline), load_records(candidate)
        base, other = _by_id(before.rows), _by_id(after.rows)
        shared = [task_id for task_id in base if task_id in other and task_id]
        if not shared:
            raise EvidenceError(
                f"no task is in both rollouts: the base has {named(sorted(base))},"
                f" the candidate has {named(sorted(other))}; roll both out on one set of tasks"
            )
        pairs = [(base[task_id], other[task_id]) for task_id in shared]
        stats = [
            count_tasks(
                [task for pair in pairs for task in pair[side]],
                self.group_extractor,
                n_malformed=records.n_malformed,
            )
            for side, records in enumerate((before, after))
        ]
        gains = self._overall(pairs)
        return MatchedBaseComparisonResult(
            baseline=stats[0],
            candidate=stats[1],
            overall_delta={key: gain.gain for key, gain in gains.items()},
            per_group=self._per_group(pairs, *stats),
            per_kind=self._per_kind(pairs, *stats),
            overall_interval={key: gain.interval for key, gain in gains.items()},
            unmatched_baseline=tuple(sorted(base.keys() - set(shared))),
            unmatched_candidate=tuple(sorted(other.keys() - set(shared))),
            n_tasks=len(shared),
            level=self.level,
        )

    def _overall(self, pairs: Sequence[_Pair]) -> dict[str, RatioGain]:
        return {
            "delta_task_pp": self._points(pairs, _passes),
            "delta_assertion_pp": self._points(pairs, _assertion_passes),
            "delta_mean_turns": self._gain(pairs, lambda task: _known(task.turns), is_rate=False),
            "delta_mean_wall": self._gain(pairs, lambda task: _known(task.wall_s), is_rate=False),
        }

    def _per_group(
        self, pairs: Sequence[_Pair], base: GroupStats, candidate: GroupStats
    ) -> list[dict[str, Any]]:
        if self.group_extractor is None:
            return []
        groups: dict[str, list[_Pair]] = {}
        for pair in pairs:
            groups.setdefault(self.group_extractor(pair[0][0].task_id), []).append(pair)
        rows = []
        for group, members in sorted(groups.items()):
            before, after = base.by_group[group], candidate.by_group[group]
            task, assertion = self._points(members, _passes), self._points(members, _assertion_passes)
            rows.append(
                {
                    "group": group,
                    "n": len(members),
                    "baseline_task_pct": percent(before["passed"], before["n"]),
                    "candidate_task_pct": percent(after["passed"], after["n"]),
                    "delta_task_pp": task.gain,
                    "interval_task_pp": listed(task.interval),
                    "baseline_assertion_pct": _assertion_pct(before),
                    "candidate_assertion_pct": _assertion_pct(after),
                    "delta_assertion_pp": assertion.gain,
                    "interval_assertion_pp": listed(assertion.interval),
                }
            )
        return rows

    def _per_kind(
        self, pairs: Sequence[_Pair], base: GroupStats, candidate: GroupStats
    ) -> list[dict[str, Any]]:
        rows = []
        nothing = {"n": 0, "passed": 0}
        for kind in sorted(base.by_kind.keys() | candidate.by_kind.keys()):
            before, after = base.by_kind.get(kind, nothing), candidate.by_kind.get(kind, nothing)
            gain = self._points(pairs, functools.partial(_kind_passes, kind=kind))
            rows.append(
                {
                    "kind": kind,
                    "n": max(before["n"], after["n"]),
                    "baseline_pct": percent(before["passed"], before["n"]),
                    "candidate_pct": percent(after["passed"], after["n"]),
                    "delta_pp": gain.gain,
                    "interval_pp": listed(gain.interval),
                }
            )
        return rows

    def _points(self, pairs: Sequence[_Pair], share: _Share) -> RatioGain:
        """Return a rate's gain in percentage points."""
        gain = self._gain(pairs, share, is_rate=True)
        points = None if gain.gain is None else 100.0 * gain.gain
        return RatioGain(
            points, None if gain.interval is None else (100.0 * gain.interval[0], 100.0 * gain.interval[1])
        )

    def _gain(self, pairs: Sequence[_Pair], share: _Share, *, is_rate: bool) -> RatioGain:
        parts = [Part(*_summed(base, share), *_summed(candidate, share)) for base, candidate in pairs]
        return ratio_gain(parts, level=self.level, is_rate=is_rate)


_Pair = tuple[list[GradedTask], list[GradedTask]]
_Share = Callable[[GradedTask], tuple[float, float]]


def _by_id(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[GradedTask]]:
    tasks: dict[str, list[GradedTask]] = {}
    for row in rows:
        task = read_task(row)
        tasks.setdefault(task.task_id, []).append(task)
    return tasks


def _passes(task: GradedTask) -> tuple[float, float]:
    return float(task.passed), 1.0


def _assertion_passes(task: GradedTask) -> tuple[float, float]:
    return float(task.n_passed), float(task.n_total)


def _kind_passes(task: GradedTask, *, kind: str) -> tuple[float, float]:
    outcomes = [passed for found, passed in task.kinds if found == kind]
    return float(sum(outcomes)), float(len(outcomes))


def _known(value: float | None) -> tuple[float, float]:
    return (0.0, 0.0) if value is None else (value, 1.0)


def _summed(tasks: Iterable[GradedTask], share: _Share) -> tuple[float, float]:
    shares = [share(task) for task in tasks]
    return sum(part for part, _ in shares), sum(whole for _, whole in shares)


def _assertion_pct(counts: Mapping[str, int]) -> float | None:
    return percent(counts["n_assertions_passed"], counts["n_assertions_total"])
