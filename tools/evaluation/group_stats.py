"""Counts over the graded tasks of one rollout."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.evaluation.metrics import known_number

__all__ = ["GradedTask", "GroupStats", "count_tasks", "read_task"]


@dataclass(frozen=True, slots=True)
class GroupStats:
    """One rollout in counts; a mean or a percentage of nothing is None.

    by_group holds n, passed, n_assertions_passed and n_assertions_total by group, by_kind n and
    passed by kind of assertion, stops how often a rollout stopped for each reason. A task
    without a grade counts as not passed; n_ungraded says how many there are.
    """

    n: int
    n_passed: int
    n_assertions_passed: int
    n_assertions_total: int
    by_group: dict[str, dict[str, int]]
    by_kind: dict[str, dict[str, int]]
    stops: dict[str, int]
    mean_turns: float | None
    mean_wall: float | None
    n_ungraded: int = 0
    n_malformed: int = 0

    def task_pass_pct(self) -> float | None:
        """Return the percentage of tasks that passed."""
        return percent(self.n_passed, self.n)

    def assertion_pass_pct(self) -> float | None:
        """Return the percentage of assertions that passed."""
        return percent(self.n_assertions_passed, self.n_assertions_total)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, unrounded, keys in order."""
        return {
            "n": self.n,
            "n_passed": self.n_passed,
            "n_assertions_passed": self.n_assertions_passed,
            "n_assertions_total": self.n_assertions_total,
            "task_pass_pct": self.task_pass_pct(),
            "assertion_pass_pct": self.assertion_pass_pct(),
            "by_group": {key: dict(counts) for key, counts in sorted(self.by_group.items())},
            "by_kind": {key: dict(counts) for key, counts in sorted(self.by_kind.items())},
            "stops": dict(sorted(self.stops.items())),
            "mean_turns": self.mean_turns,
            "mean_wall": self.mean_wall,
            "n_ungraded": self.n_ungraded,
            "n_malformed": self.n_malformed,
        }


@dataclass(frozen=True, slots=True)
class GradedTask:
    """What one trajectory record says."""

    task_id: str
    graded: bool
    passed: bool
    n_passed: int
    n_total: int
    kinds: tuple[tuple[str, bool], ...]
    stopped: str
    turns: float | None
    wall_s: float | None


def read_task(row: Mapping[str, Any]) -> GradedTask:
    """Read a trajectory record: task_id, final_grade, stopped, n_turns, wall_seconds."""
    grade = row.get("final_grade")
    grade = grade if isinstance(grade, Mapping) else {}
    listed = grade.get("assertions")
    assertions = [item for item in listed if isinstance(item, Mapping)] if isinstance(listed, list) else []
    kinds = tuple((str(item.get("kind") or ""), item.get("passed") is True) for item in assertions)
    n_passed, n_total = grade.get("n_passed"), grade.get("n_total")
    if type(n_passed) is not int or type(n_total) is not int:
        n_passed, n_total = sum(passed for _, passed in kinds), len(kinds)
    return GradedTask(
        task_id=str(row.get("task_id") or ""),
        graded=isinstance(grade.get("passed"), bool),
        passed=grade.get("passed") is True,
        n_passed=n_passed,
        n_total=n_total,
        kinds=kinds,
        stopped=str(row.get("stopped") or "?"),
        turns=known_number(row.get("n_turns")),
        wall_s=known_number(row.get("wall_seconds")),
    )


def count_tasks(
    tasks: Sequence[GradedTask],
    group_of: Callable[[str], str] | None,
    *,
    n_malformed: int = 0,
) -> GroupStats:
    """Count tasks, by group where group_of tells one from a task's id."""
    by_group: dict[str, dict[str, int]] = {}
    by_kind: dict[str, dict[str, int]] = {}
    for task in tasks:
        if group_of is not None:
            counts = {"n": 1, "passed": int(task.passed)}
            counts |= {"n_assertions_passed": task.n_passed, "n_assertions_total": task.n_total}
            _add(by_group, group_of(task.task_id), counts)
        for kind, passed in task.kinds:
            _add(by_kind, kind, {"n": 1, "passed": int(passed)})
    return GroupStats(
        n=len(tasks),
        n_passed=sum(task.passed for task in tasks),
        n_assertions_passed=sum(task.n_passed for task in tasks),
        n_assertions_total=sum(task.n_total for task in tasks),
        by_group=by_group,
        by_kind=by_kind,
        stops=dict(Counter(task.stopped for task in tasks)),
        mean_turns=_mean([task.turns for task in tasks]),
        mean_wall=_mean([task.wall_s for task in tasks]),
        n_ungraded=sum(not task.graded for task in tasks),
        n_malformed=n_malformed,
    )


def percent(part: int, whole: int) -> float | None:
    """Return part of whole in percent; None of nothing."""
    return 100.0 * part / whole if whole else None


def _add(buckets: dict[str, dict[str, int]], key: str, counts: Mapping[str, int]) -> None:
    bucket = buckets.setdefault(key, dict.fromkeys(counts, 0))
    for name, count in counts.items():
        bucket[name] += count


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
